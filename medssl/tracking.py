"""MLflow is a view: this copies what is in the store to a tracking server, and may fail at it.

    progress/ID.json (curves) + rows/ (metrics) + figures -> one run per encoder, found by its tag

Trials never speak to MLflow, so a server that is down, slow or gone cannot lose, delay or fail one;
what it missed is sent when it is back, or when the sweep is run again. One process writes: SQLite
has no rivals. A run is found again by the tag `medssl.encoder`, never made twice; curves go on
after the last epoch that the server has.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from medssl import results
from medssl.spec import Cell, Scalar, settings
from medssl.status import Status, Trial
from medssl.store import Store

SHOWN = ("auroc", "accuracy", "balanced_accuracy", "val_auroc")  # the rest is in the table
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI's view for training runs
PAGE = 1000  # runs a request
PAUSE_S = 30  # after a failure, before the server is asked again
STATES = {"finished": "FINISHED", "failed": "FAILED", "waiting": "KILLED"}

Figures = Callable[[Trial], Iterable[tuple[str, bytes]]]  # (file name, PNG)


def uri(store: Store) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the store, or of a bucket in the user's cache."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.beside}/mlflow.db"


def serve(address: str, port: int, what: str, say: Callable[[str], None]) -> None:
    """Becomes the server of MLflow's pages, for this machine alone: whoever ends us ends it.

    A process beside it says where they are, once they can be opened. ValueError where the port is
    taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended just now
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as no:
            raise ValueError(
                f"port {port} cannot be used ({no.strerror}): name another one, as --port "
                f"{5000 + (port + 1) % 1000}"
            ) from None
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    say(f"starting {what} (Ctrl-C to stop)")
    sys.stdout.flush()
    server = os.getpid()
    if not os.fork():
        try:
            if _answers(port, while_alive=server):
                say(f"{what} is at http://127.0.0.1:{port}")
                sys.stdout.flush()
        finally:
            os._exit(0)
    os.execve(command[0], command, {**os.environ, **quiet})


def _answers(port: int, while_alive: int) -> bool:
    """Waits for the server's first answer; False if it ended before."""
    while os.getppid() == while_alive:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(asked):
            asked.request("GET", "/health")
            asked.getresponse()
            return True
        time.sleep(0.2)
    return False


class Mirror:
    """Brings one experiment up to date with the store whenever `sync` is called. Never raises."""

    def __init__(self, experiment: str, store: Store, figures: Figures, code: str):
        self.experiment, self.store, self.code = experiment, store, code
        self._figures = figures
        self._client = None
        self._experiment_id = ""
        self._runs: dict[str, _Run] = {}
        self._there: dict = {}  # MLflow's runs that were there when it was connected
        self._silent_until = 0.0
        self._one_at_a_time = threading.Lock()
        self.trouble = ""  # the last failure, until a sync succeeds

    def sync(self, status: Status) -> bool:
        """True if everything in `status` is on the server."""
        with self._one_at_a_time:
            return self._sync(status)

    def _sync(self, status: Status) -> bool:
        if time.monotonic() < self._silent_until:
            return False
        unread = ""
        try:
            self._connect()
            for trial in status.trials + status.points:
                try:
                    if not self._whole(trial) and (trial.done or trial.said):
                        self._bring(trial)
                except results.Broken as broken:  # the store's fault: the other runs are brought
                    unread = str(broken)
        except Exception as failed:  # whatever an HTTP client, a database or a disk may raise
            first = not self.trouble
            self.trouble = f"{type(failed).__name__}: {str(failed).splitlines()[0][:200]}"
            self._silent_until = time.monotonic() + PAUSE_S
            self._client = None
            if first:
                warnings.warn(
                    f"MLflow at {uri(self.store)} is behind ({self.trouble}); the results are "
                    f"complete without it, and it is brought up to date when it answers again",
                    stacklevel=2,
                )
            return False
        self.trouble = unread
        return not unread

    def _connect(self) -> None:
        if self._client:
            return
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        local = uri(self.store).startswith("sqlite:")
        if local:
            self.store.beside.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=uri(self.store))
        found = client.get_experiment_by_name(self.experiment)
        place = (self.store.beside / "mlartifacts" / _safe(self.experiment)).as_uri()
        self._experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(self.experiment, place if local else None, KIND)
        )
        self._client = client
        self._runs, self._there, page = {}, {}, None
        while page != "":  # thousands of runs in a few requests, and not one for each
            found = client.search_runs([self._experiment_id], max_results=PAGE, page_token=page)
            self._there |= {run.data.tags.get("medssl.encoder", ""): run for run in found}
            page = found.token or ""

    def _whole(self, trial: Trial) -> bool:
        """Whether all of a finished trial has been brought, so that nothing of it need be read."""
        run = self._runs.get(trial.spec.id)
        finished = run and run.state == STATES["finished"] and trial.state == "finished"
        return bool(finished) and all(cell.id in run.cells for cell in trial.cells)

    def _bring(self, trial: Trial) -> None:
        run = self._runs.get(trial.spec.id) or self._find(trial)
        self._runs[trial.spec.id] = run
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        curve = trial.curve
        new = [
            Metric(name, value, now, epoch)
            for epoch, values in enumerate(curve[run.epochs :], start=run.epochs + 1)
            for name, value in values.items()
        ]
        for start in range(0, len(new), 900):  # a batch holds at most 1000
            self._client.log_batch(run.id, metrics=new[start : start + 900])
        run.epochs = max(run.epochs, len(curve))
        fresh = [c for c in trial.cells if c.id not in run.cells]
        rows = results.table(self.store, fresh).to_pylist() if fresh and trial.done else []
        if rows:
            cells = {cell.id: cell for cell in fresh}
            final = [
                Metric(_metric(cells[row["cell"]], row["metric"]), row["value"], now, 0)
                for row in rows
                if row["metric"] in SHOWN
            ]
            news = [m for m in final if run.metrics.get(m.key) != m.value]
            self._client.log_batch(run.id, metrics=news)
            run.cells |= {row["cell"] for row in rows}
        state = STATES.get(trial.state, "RUNNING")
        if state != run.state or (rows and news):
            if trial.state == "finished":
                self._picture(run, trial)
            if (reason := trial.said.get("reason", "")) or run.state == "FAILED":
                self._client.set_tag(run.id, "medssl.reason", reason[:500])
            if state == "RUNNING":
                self._client.update_run(run.id, status=state)
            else:
                ended = int(1000 * trial.said.get("updated", time.time()))
                self._client.set_terminated(run.id, status=state, end_time=ended)
            run.state = state

    def _find(self, trial: Trial) -> "_Run":
        """The encoder's run in this experiment, made if there is none, and what it already has."""
        spec = trial.spec
        run = self._there.get(spec.id)
        if not run:  # by another driver, since
            asked = f"tags.`medssl.encoder` = '{spec.id}'"
            found = self._client.search_runs([self._experiment_id], asked, max_results=1)
            run = found[0] if found else None
        if run:
            history = self._client.get_metric_history(run.info.run_id, "loss")
            epochs = max((m.step for m in history), default=0)
            if not run.data.params:  # made, and then the server was gone
                self._params(run.info.run_id, trial)
            return _Run(run.info.run_id, epochs, run.data.metrics, run.info.status)
        tags = {
            "medssl.encoder": spec.id,
            "medssl.code": self.code,
            "medssl.store": str(self.store.root),
            "mlflow.runName": f"{spec.method} {spec.dataset} {spec.backbone} seed {spec.seed}",
        }
        run = self._client.create_run(
            self._experiment_id,
            start_time=int(1000 * trial.said.get("started", time.time())),
            tags=tags,
        )
        self._params(run.info.run_id, trial)
        return _Run(run.info.run_id, 0, {}, "RUNNING")

    def _params(self, run_id: str, trial: Trial) -> None:
        from mlflow.entities import Param, RunTag

        values = asdict(trial.spec) | {"search": trial.spec.search or ""}
        recipe = dict(values.pop("recipe"))
        values |= {(f"method_{k}" if k in values else k): v for k, v in recipe.items()}
        params = [Param(k, str(v)) for k, v in values.items()]
        host = RunTag("medssl.host", str(trial.said.get("host", "")))
        self._client.log_batch(run_id, params=params, tags=[host])

    def _picture(self, run: "_Run", trial: Trial) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._figures(trial):
                path = Path(folder) / name
                path.write_bytes(content)
                self._client.log_artifact(run.id, str(path), "figures")


class _Run:
    """What is known to be on the server of one encoder."""

    def __init__(self, id: str, epochs: int, metrics: dict[str, float], state: str):
        self.id, self.epochs, self.metrics, self.state = id, epochs, metrics, state
        self.cells: set[str] = set()  # sent by this process, or found there equal


def _metric(cell: Cell, metric: str) -> str:
    """linear_probe/auroc:0.01, and whatever else tells the cell from its neighbours.

    A colon, because MLflow refuses the @ that one would rather write.
    """
    known = f"{cell.shots}-shot" if cell.shots else f"{cell.label_fraction:g}"
    name = f"{cell.eval}/{metric}:{known}"
    changed = dict(set(cell.settings) - set(settings("evals", cell.eval)))
    name += "".join(f" {k} {_told(v)}" for k, v in sorted(changed.items()))
    name += f" subset {cell.subset_seed}" if cell.subset_seed else ""
    name += f" {_safe(cell.target)}" if cell.target != cell.encoder.dataset else ""
    return name + (f" learned on {_safe(cell.source)}" if cell.source != cell.target else "")


def _told(value: Scalar) -> str:
    """A value; of many names their number and a digest, for MLflow's names end at 250 letters."""
    if not isinstance(value, tuple):
        return _safe(str(value))
    names = " ".join(value)
    digest = hashlib.sha256(names.encode()).hexdigest()[:6]
    return _safe(names) if len(names) <= 60 else f"{len(value)} sets {digest}"


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._- " else "-" for c in name)
