"""MLflow is a view: this copies what is in the store to a tracking server, and may fail at it.

    progress/ID.json (curves) + rows/ (metrics) + figures -> one run per encoder, found by its tag
    the whole sweep -> one run above them, which says how far it is and holds its tables

Trials never speak to MLflow, so a server that is down, slow or gone cannot lose, delay or fail one;
what it missed is sent when it is back, or when the sweep is run again. SQLite has one writer; a
server may have one for each part of a sweep. A run is found again by the tag `medssl.encoder`, and
curves go on after the last epoch that the server has. A server cannot be told a run's name to be,
so two that ask at one moment make two: the older one stays. What is sent twice is there once, for
points have the times of the store and not of the sending, and equal points are one to MLflow.
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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from medssl import results
from medssl.spec import SEARCHED, Cell, Scalar, settings
from medssl.status import Status, Trial
from medssl.store import Store

SHOWN = ("auroc", "accuracy", "balanced_accuracy", "val_auroc")  # the rest is in the table
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI's view for training runs
PAGE, BATCH = 1000, 900  # runs, and numbers, a request; MLflow takes 1000
AT_ONCE = 4  # requests, of a server: its answers take their time
PAUSE_S = 30  # after a failure, before the server is asked again
TELL_S = 60  # between two accounts of the whole sweep, at least
MEET_S = 1  # after which of two runs of a sweep that are made at once both are seen
STATES = {"finished": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "waiting": "KILLED"}

Figures = Callable[[Trial], Iterable[tuple[str, bytes]]]  # (file name, PNG)


class Overview(NamedTuple):
    """A whole sweep, whichever part of it this driver has."""

    state: str  # of all of it, in the words of a trial's
    counts: dict[str, int]  # of its cells, by names of metrics
    codes: list[str]  # versions that made its results
    note: str  # markdown


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

    def __init__(
        self,
        experiment: str,
        store: Store,
        figures: Figures,
        overview: Callable[[], Overview],
        code: str,
    ):
        self.experiment, self.store, self.code = experiment, store, code
        self._figures, self._overview = figures, overview
        self._client = None
        self._experiment_id = ""
        self._runs: dict[str, _Run] = {}
        self._there: dict = {}  # MLflow's runs that were there when it was connected
        self._parent = None  # the sweep's, among them
        self._counts: dict[str, int] = {}  # that it has
        self._silent_until = self._quiet_until = 0.0
        self._one_at_a_time, self._ink = threading.Lock(), threading.Lock()
        self.trouble = ""  # the last failure, until a sync succeeds

    def sync(self, status: Status, last: bool = False) -> bool:
        """True if everything in `status` is on the server; the last says how the sweep ended."""
        with self._one_at_a_time:
            return self._sync(status, last)

    def _sync(self, status: Status, last: bool) -> bool:
        if time.monotonic() < self._silent_until and not last:
            return False
        try:
            self._connect()
            left = [trial for trial in status.trials + status.points if not self._whole(trial)]
            with _several(1 if self._local else AT_ONCE) as pool:
                unread = [*pool.map(partial(_unread, self._bring), left)]
            if last or time.monotonic() >= self._quiet_until:
                unread.append(_unread(self._tell, last))
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
        self.trouble = next(filter(None, unread), "")
        return not self.trouble

    @property
    def _local(self) -> bool:
        return uri(self.store).startswith("sqlite:")

    def _connect(self) -> None:
        if self._client:
            return
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of each run
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        if self._local:
            self.store.beside.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=uri(self.store))
        self._experiment_id = self._experiment(client)
        there, page = defaultdict(list), None
        while page != "":  # thousands of runs in a few requests, and not one for each
            found = client.search_runs([self._experiment_id], max_results=PAGE, page_token=page)
            for run in found:
                there[run.data.tags.get("medssl.encoder", "")].append(run)
            page = found.token or ""
        self._client, self._runs, self._counts = client, {}, {}
        above = [run for run in there.pop("", []) if "medssl.sweep" in run.data.tags]
        self._parent = self._oldest(above) if above else self._make_parent()
        self._there = {id: self._oldest(runs) for id, runs in there.items()}

    def _experiment(self, client) -> str:
        """Its id; it is made if there is none."""
        from mlflow.exceptions import MlflowException

        if found := client.get_experiment_by_name(self.experiment):
            return found.experiment_id
        place = (self.store.beside / "mlartifacts" / _safe(self.experiment)).as_uri()
        try:
            return client.create_experiment(self.experiment, place if self._local else None, KIND)
        except MlflowException:
            if found := client.get_experiment_by_name(self.experiment):  # another's, since
                return found.experiment_id
            raise

    def _oldest(self, runs: list):
        """The one that stays of several that are of one thing; the others are deleted."""
        first, *others = sorted(
            runs, key=lambda r: (r.data.tags.get("medssl.made", ""), r.info.run_id)
        )
        for run in others:
            self._client.delete_run(run.info.run_id)
        return first

    def _make(self, name: str, started: float, alike: str, tags: dict[str, str], wait_s: float = 0):
        """A new run, or another driver's older one of the same thing, which `alike` finds."""
        made = {
            "mlflow.runName": name,
            "medssl.made": str(time.time_ns()),
            "medssl.code": self.code,
            "medssl.store": str(self.store.root),
        }
        self._client.create_run(self._experiment_id, int(1000 * started), made | tags)
        time.sleep(wait_s)
        return self._oldest(self._client.search_runs([self._experiment_id], alike))

    def _make_parent(self):
        tags = {"medssl.sweep": self.experiment}
        wait_s = 0 if self._local else MEET_S  # others are about to make it too
        alike = "tags.`medssl.sweep` != ''"
        return self._make(f"sweep {self.experiment}", time.time(), alike, tags, wait_s)

    def _tell(self, last: bool) -> None:
        """How far the whole sweep is, and at the last how it ended."""
        from mlflow.entities import Metric, RunTag

        began, now = time.monotonic(), int(time.time() * 1000)
        run, found = self._parent.info, self._overview()
        minute = max(0, now - run.start_time) // 60_000
        counts = {k: n for k, n in found.counts.items() if self._counts.get(k) != n}
        codes = ", ".join(dict.fromkeys([*found.codes, self.code]))
        tags = [RunTag("mlflow.note.content", found.note), RunTag("medssl.code", codes)]
        points = [Metric(name, n, now, minute) for name, n in counts.items()]
        self._client.log_batch(run.run_id, points, tags=tags)
        self._counts = found.counts
        state = STATES.get(found.state, "RUNNING") if last else "RUNNING"
        if state == "RUNNING":
            self._client.update_run(run.run_id, status=state)
        else:
            self._client.set_terminated(run.run_id, status=state, end_time=now)
        done = time.monotonic()
        self._quiet_until = done + max(TELL_S, 20 * (done - began))

    def _whole(self, trial: Trial) -> bool:
        """Whether all of a finished trial has been brought, so that nothing of it need be read."""
        run = self._runs.get(trial.spec.id)
        if run and trial.diverged:
            return run.state == STATES["diverged"]
        finished = run and run.state == STATES["finished"] and trial.state == "finished"
        return bool(finished and run.settled) and all(cell.id in run.cells for cell in trial.cells)

    def _bring(self, trial: Trial) -> None:
        if not (trial.done or trial.said):
            return
        if not (run := self._runs.get(trial.spec.id)):
            run = self._runs[trial.spec.id] = self._find(trial)
            if self._whole(trial):
                return
        from mlflow.entities import Metric, Param, RunTag

        curve, tags = trial.curve, []
        fresh = [c for c in trial.cells if c.id not in run.cells]
        rows = results.table(self.store, fresh).to_pylist() if fresh and trial.done else []
        cells = {cell.id: cell for cell in fresh}
        ends = _ends(curve, run.started)
        epochs = [
            [Metric(name, value, at, epoch) for name, value in values.items()]
            for epoch, (values, at) in enumerate(zip(curve, ends, strict=True), start=1)
        ]
        at = max(ends, default=run.started)
        final = [
            Metric(_metric(cells[row["cell"]], row["metric"]), row["value"], at, 0)
            for row in rows
            if row["metric"] in SHOWN
        ]
        news = [[m] for m in final if run.metrics.get(m.key) != m.value]
        brought = run.cells | {row["cell"] for row in rows}
        # The last row is in the store before the trial's last word, which may hold its last epochs
        settled = trial.state == trial.said.get("state") == "finished"
        if settled and (rows or not run.settled):
            tags.append(RunTag("medssl.cells", _digest(brought)))
        state = STATES.get(trial.state, "RUNNING")
        changed = state != run.state
        if changed and ((reason := trial.said.get("reason", "")) or run.state == "FAILED"):
            tags.append(RunTag("medssl.reason", reason[:500]))
        params = [] if run.described else _params(trial)
        if rows and trial.spec.search:
            params += [Param(axis, str(rows[0][axis])) for axis in SEARCHED]
        tags += [] if run.described else [RunTag("medssl.host", str(trial.said.get("host", "")))]
        *batches, end = _batches([*epochs[run.epochs :], *news])
        for batch in batches:
            self._client.log_batch(run.id, batch)
        self._client.log_batch(run.id, end, params, tags)  # which sends nothing of nothing
        run.epochs, run.cells, run.described = max(run.epochs, len(curve)), brought, True
        run.settled = settled
        if changed or news:
            if trial.state == "finished":
                self._picture(run, trial)
            if state == "RUNNING":
                self._client.update_run(run.id, status=state)
            else:
                ended = int(1000 * trial.said.get("updated", time.time()))
                self._client.set_terminated(run.id, status=state, end_time=ended)
            run.state = state

    def _find(self, trial: Trial) -> "_Run":
        """The encoder's run in this experiment, made if there is none, and what it already has."""
        spec, parent = trial.spec, self._parent.info.run_id
        if not (there := self._there.pop(spec.id, None)):
            name = f"{spec.method} {spec.dataset} {spec.backbone} seed {spec.seed}"
            tags = {"medssl.encoder": spec.id, "mlflow.parentRunId": parent}
            alike = f"tags.`medssl.encoder` = '{spec.id}'"
            there = self._make(name, trial.said.get("started", time.time()), alike, tags)
        run, tags = _Run(there), there.data.tags
        if tags.get("mlflow.parentRunId") != parent:
            self._client.set_tag(run.id, "mlflow.parentRunId", parent)
        if tags.get("medssl.cells") == _digest(cell.id for cell in trial.cells):
            run.cells, run.settled = {cell.id for cell in trial.cells}, True
        if "loss" in run.metrics and not (run.cells and run.state == STATES["finished"]):
            history = self._client.get_metric_history(run.id, "loss")
            run.epochs = max(m.step for m in history)
        return run

    def _picture(self, run: "_Run", trial: Trial) -> None:
        import tempfile

        with self._ink:  # matplotlib's fonts are for one thread
            drawn = list(self._figures(trial))
        with tempfile.TemporaryDirectory() as folder:
            for name, content in drawn:
                path = Path(folder) / name
                path.write_bytes(content)
                self._client.log_artifact(run.id, str(path), "figures")


class _Run:
    """What is known to be on the server of one encoder."""

    def __init__(self, there):
        self.id, self.state = there.info.run_id, there.info.status
        self.started = there.info.start_time  # milliseconds since 1970
        self.metrics: dict[str, float] = there.data.metrics
        self.described = bool(there.data.params)  # else it was made, and then the server was gone
        self.epochs = 0
        self.cells: set[str] = set()  # sent by this process, or found there equal
        self.settled = False  # it has all that the trial said, to its last word


@contextlib.contextmanager
def _several(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that begins nothing more once what is inside has failed."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _unread(do: Callable, asked) -> str:
    """Which row file cannot be read, and kept `do` from its end; that is not the server's fault."""
    try:
        do(asked)
    except results.Broken as broken:
        return str(broken)
    return ""


def _params(trial: Trial) -> list:
    from mlflow.entities import Param

    values = asdict(trial.spec) | {"search": trial.spec.search or ""}
    for axis in SEARCHED if trial.spec.search else ():
        del values[axis]  # until it is known what was chosen
    recipe = dict(values.pop("recipe"))
    values |= {(f"method_{k}" if k in values else k): v for k, v in recipe.items()}
    return [Param(k, str(v)) for k, v in values.items()]


def _ends(curve: list[dict[str, float]], started: int) -> list[int]:
    """When training ended each epoch, in milliseconds since 1970, as if it had never paused."""
    seconds = accumulate((epoch.get("seconds", 0) for epoch in curve), initial=0)
    return [started + int(1000 * s) for s in seconds][1:]


def _batches(groups: Iterable[list]) -> list[list]:
    """Requests, at least one; none holds a part of a group, so that an epoch is there or is not."""
    batches = [[]]
    for group in groups:
        if len(batches[-1]) + len(group) > BATCH:
            batches.append([])
        batches[-1] += group
    return batches


def _digest(cells: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(cells)).encode()).hexdigest()[:12]


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
