"""Ray's door. Ray decides where and when a trial runs; the results table decides what is left.

    missing cells, grouped by encoder -> one Tune trial each -> medssl.trial.run on a worker

The supervised encoders that others start from are trials of their own, each once: what starts from
one is begun when it is there, and of all that can begin the longest is first.
Of a search the points of the first rung are trials like any other; which points those of the next
are is known to the worker, from the store, once the rung before is complete.
Tune's own state is scratch: to resume, or to add cells, a sweep is run again. A lost worker is
retried by Tune, and the trial counts its attempts, since only it knows which of them a preemption
ended; a bug, a diverged loss or bad data is recorded by the trial and not retried, for the same
steps would give the same end. Workers are shared by the trials that follow one another, so the
seconds of importing torch are paid once per slot.
"""

import collections
import contextlib
import ctypes
import functools
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from medssl import results, search
from medssl._work import Preempted, beside
from medssl.cost import INF, UNKNOWN, Costs, Queue, weight
from medssl.plan import to_make
from medssl.search import Later
from medssl.spec import SUPERVISED, Cell, EncoderSpec, Resources, parent
from medssl.store import AWAY_S, Store, open_store

DEFAULTS = {  # each undoes something of Ray's that would hurt a sweep
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` every worker would start through uv
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoardX would import torch in the driver
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # Tune's state is scratch here: write it rarely
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it says nothing: see `_ctrl_c`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, without its warning
}


STARTS = 3  # attempts at a Ray of our own: it gives itself 30 s, too few on a busy machine
PATIENCE_S = 10  # seconds in which the head of a cluster must answer
LOOK_S = 2  # between two looks at the head, and at which nodes there are
RAYS_PATIENCE_S = "RAY_gcs_rpc_server_reconnect_timeout_s"  # with a silent head; 60 if it is unset
BEFORE_S = 10  # how much earlier our own ends
OBJECT_STORE = 200_000_000  # bytes; only specs travel through it, so Ray's 30% of memory is waste


@dataclass(frozen=True)
class Job:
    """What every trial of a sweep is told; it travels to the workers."""

    store: str  # its address
    data: Path | None
    weights: str | None  # the folder MEDSSL_WEIGHTS
    code: str
    resources: Resources
    run: str  # of this driver


_leave = threading.Event()  # on a worker: it has been asked to end
_pending: collections.deque = collections.deque(maxlen=8)
NOT_MADE = "the encoder of its init was not made"
BUDGET = "not begun, for it would exceed the budget"
ATTEMPTS = 20  # of a trial whose worker dies before it can count them itself

Work = list[Cell] | EncoderSpec | Later  # of a trial: cells to measure, an encoder to make, or a
# point of a search, that is still to be found


def run(
    cells: Sequence[Cell],
    store: Store,
    data: Path | None,
    code: str,
    resources: Resources,
    say: Callable[[str], None] = print,
    costs: Costs = UNKNOWN,
    budget_s: float = INF,
) -> dict[str, str]:
    """Runs one trial per encoder of `cells`, the missing ones; blocks until the last has ended.

    The longest by `costs` are first; none is begun that would exceed `budget_s`: GPU-seconds, or
    seconds of slots where trials have no GPU.

    Returns why, by encoder id, of the trials whose worker died once too often, whose supervised
    init could not be made, or that a budget left (BUDGET). What was measured, and what failed with
    a word, is in the store. Ctrl-C ends it early and raises nothing.
    ValueError where a trial fits nowhere.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    todo: dict[str, list[Cell]] = {}
    for cell in cells:
        todo.setdefault(cell.encoder.id, []).append(cell)
    say("starting Ray")
    with _ctrl_c(say) as asked, contextlib.suppress(KeyboardInterrupt):
        _connect()  # whose own code may swallow the exception
    if asked.is_set():
        ray.shutdown()
        return {}
    has, more = ray.cluster_resources(), _to_come()
    trials = _trials(todo, store)
    work = trials.work
    any_gpu = any(node.get("GPU") for node in [has, *more])
    gpus = {id: resources.share(_spec(each), any_gpu) for id, each in work.items()}
    room = _room(resources, gpus.values(), say)
    takes = " to ".join(f"{gpu:g}" for gpu in sorted({min(gpus.values()), max(gpus.values())}))
    say(
        f"Ray has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs"
        + (f", and adds up to {len(more)} nodes" if more else "")
        + f"; a trial takes {resources.cpu} and {takes}; at most {room().trials} at a time"
    )
    weights, driver = os.environ.get("MEDSSL_WEIGHTS"), uuid.uuid4().hex
    plain = replace(resources, gpu=None)  # a sweep's function need not be known to the workers
    job = Job(store.address, data, weights, code, plain, driver)
    above = sum(isinstance(each, EncoderSpec) for each in work.values())
    if above:
        say(f"supervised encoders that others start from, to be made before those: {above}")
    if trials.points:
        say(f"points of searches, to be measured before what they choose for: {len(trials.points)}")
    made = store.names("encoders", ".safetensors")
    known = {
        id: weight(_cells(each), _spec(each), id not in made, costs) for id, each in work.items()
    }
    queue = Queue(known, trials.waits, budget_s, shares=gpus if any(gpus.values()) else None)
    found = {}
    with _ctrl_c(say) as asked, _headed(say), contextlib.suppress(KeyboardInterrupt):
        found = _fit(trials, gpus, queue, job, room)
    if asked.is_set():
        ray.shutdown()  # no trial goes on
        return {}
    say(queue.told(any(gpus.values())))
    lost = {id: why for id in todo if (why := _ended(id, found, trials))}
    if budget_s < INF:
        lost |= {id: BUDGET for id in todo if id not in found and id not in lost}
    silent = [id for id in todo if id in found and id not in lost and not _failed(found[id])]
    unseen = [id for id in silent if results.missing(todo[id], store)]
    return lost | dict.fromkeys(unseen, _unseen(store))


class Trials(NamedTuple):
    """All of a run, by id: those that others wait for too."""

    work: dict[str, Work]
    waits: dict[str, set[str]]  # for which others
    points: set[str]  # of searches: they may diverge


def _trials(todo: dict[str, list[Cell]], store: Store) -> Trials:
    made, searches = store.names("encoders", ".safetensors"), search.Searches(store)
    work: dict[str, Work] = {id: list(cells) for id, cells in todo.items()}
    waits: dict[str, set[str]] = {}
    points: set[str] = set()
    after: dict[str, set[str]] = collections.defaultdict(set)
    for spec in search.asked([cells[0].encoder for cells in todo.values()], made):
        for cell in searches.missing(spec):
            mine = work.setdefault(cell.encoder.id, [])
            mine += [cell] * (cell not in mine)
            points.add(cell.encoder.id)
        work |= {one.id: one for one in searches.later(spec)}
        points |= {one.id for one in searches.later(spec)}
        waits |= search.waits(spec, searches)
        ahead = {cell.id for cell in searches.missing(spec)}  # shared with others, so that their
        before = set().union(*(after.get(id, ()) for id in ahead))  # next rungs may be so too
        for one in searches.later(spec):
            waits[one.id] |= before
            for id in ahead:
                after[id].add(one.id)
    for id, (first, *_) in todo.items():
        if id not in made and first.encoder.search:
            waits[id] = waits[search.base(first.encoder).id]
    for spec in to_make([cell for each in work.values() for cell in _cells(each)[:1]], made):
        if spec.method == SUPERVISED:
            work[spec.id] = spec
    for id, each in work.items():
        if (above := parent(_spec(each))) and above.id in work:
            waits[id] = waits.get(id, set()) | {above.id}
    return Trials(work, waits, points)


def _ended(id: str, found: dict, trials: Trials) -> str:
    """Why a trial did not do what it was to do, where it cannot have said so itself; else ""."""
    if id in found:
        return _why(found[id].error) if found[id].error is not None else ""
    for above in sorted(trials.waits.get(id, ())):
        point = above in trials.points
        what = "a point of its search was not measured" if point else NOT_MADE
        log = "" if isinstance(trials.work[above], Later) else f" (logs/{above}.log)"
        if above not in found:
            if further := _ended(above, found, trials):
                return further
        elif found[above].error is not None:
            return f"{what}: {_why(found[above].error)}{log}"
        elif not _well(found[above].metrics, point):
            return f"{what}: {_failed(found[above])}{log}"
    return ""


def _fit(
    trials: Trials, gpus: dict[str, float], queue: Queue, job: Job, room: Callable[[], "Room"]
) -> dict:
    """A Tune trial for each, in the queue's order, as many at a time as there is room for; Ray's
    results, by their ids."""
    import ray
    from ray import tune

    scratch = open_store(job.store).beside / "tune" / f"{time.time_ns()}"
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, job=job, work=[ray.put(trials.work)]),
            lambda config: {"cpu": job.resources.cpu, "gpu": config["gpu"]},
        ),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(queue, gpus, room, trials.points),
            num_samples=-1,
            max_concurrent_trials=max(1, len(trials.work)),  # else Tune would start them one by one
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
            callbacks=[_listener(queue)],
            verbose=0,
        ),
    )
    try:
        # where a reused worker died early, config is the trial's before it: the folder says which
        return {Path(result.path).name: result for result in tuner.fit()}
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, signal.default_int_handler)  # Tune listens no more
        shutil.rmtree(scratch, ignore_errors=True)


def _searcher(
    queue: Queue, gpus: dict[str, float], room: Callable[[], "Room"], points: Collection[str]
):
    """What Tune asks for its next trial, ten times a second; `points` of searches may diverge."""
    from ray.tune.search import Searcher

    class Next(Searcher):
        def __init__(self):
            super().__init__()
            self._of: dict[str, str] = {}

        def suggest(self, trial_id: str):
            trials, free = room()
            free -= sum(gpus[id] for id in self._of.values())
            if len(self._of) >= trials:
                return None
            found = queue.next(lambda id: gpus[id] <= free + 1e-9 or not self._of)
            if found is Queue.END:
                return Searcher.FINISHED
            if found is not None:
                self._of[trial_id] = found
            return found and {"encoder": found, "gpu": gpus[found]}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error=False):
            id = self._of.pop(trial_id)
            queue.ended(id, ok=not error and _well(result, id in points))

        def save(self, path: str) -> None:
            """Nothing: what is done is in the store."""

        def restore(self, path: str) -> None:
            """Never called."""

        def __reduce__(self):
            return Searcher, ()  # Tune keeps itself, to be restored: nothing of ours is in it

    return Next()


def _listener(queue: Queue):
    """What Tune tells when a trial has a slot (one that waits for a node costs nothing yet), and
    when it has ended: of its metrics Tune keeps minima, means and windows for ever, 15 KiB."""
    from ray.tune import Callback

    class Listener(Callback):
        def on_trial_start(self, iteration, trials, trial, **_):
            queue.started(_name(trial))

        def on_trial_complete(self, iteration, trials, trial, **_):
            trial.metric_analysis.clear()
            trial.metric_n_steps.clear()
            trial.run_metadata.invalidate_cache()

        def __reduce__(self):
            return Callback, ()  # as of the searcher

    return Listener()


def _cells(work: Work) -> list[Cell]:
    """Of a point that is still to be found, those of another one."""
    return [] if isinstance(work, EncoderSpec) else work.like if isinstance(work, Later) else work


def _spec(work: Work) -> EncoderSpec:
    return work if isinstance(work, EncoderSpec) else _cells(work)[0].encoder


@contextlib.contextmanager
def _ctrl_c(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Inside, Ctrl-C is answered at once and asks Tune to end, by the signal it always listens to.

    Not by an exception, which Ray's internals may swallow where it happens to strike; a second
    Ctrl-C is one. Gives the event that is set by the first.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def answer(*_) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stopping; what is finished is kept")
        signal.raise_signal(signal.SIGUSR1)

    kinds = signal.SIGINT, signal.SIGUSR1
    before = [signal.signal(kind, signal.default_int_handler) for kind in kinds]  # until Tune does
    signal.signal(signal.SIGINT, answer)
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _trial(config: dict, job: Job, work: list) -> None:
    """On a worker: what is missing of one encoder's cells, or the encoder that others need.

    `work` holds a reference to that of all trials, which a worker reads once.
    """
    if _leave.is_set():  # in an earlier trial, which had an end of its own
        raise Preempted("before it began, with its worker")
    with _sigterm():
        told = _done(config["encoder"], config["gpu"], job, work)
    from ray import tune

    tune.report(told)


def _done(encoder: str, gpu: float, job: Job, work: list) -> dict:
    """Does it; why it "failed", or "", and whether it "diverged". What a retry may mend is
    raised."""
    import torch

    from medssl import device, trial
    from medssl.pretrain import NotFinite

    torch.set_num_threads(job.resources.cpu)
    if job.weights:
        os.environ["MEDSSL_WEIGHTS"] = job.weights
    store = open_store(job.store, AWAY_S)
    mine = _of_all(*work)[encoder]
    try:
        where = device.pick(gpu=gpu > 0)
        device.confine(where, gpu)
        attempts = {"run": job.run, "retries": job.resources.retries, "leave": _leave.is_set}
        here = trial.Here(where, job.data, job.code, job.resources.checkpoint_s, **attempts)
        if isinstance(mine, EncoderSpec):
            trial.make(mine, store, here)
        else:
            if isinstance(mine, Later):
                mine = search.Searches(store, search.LAG_S).of_later(mine)
            if cells := results.missing(mine, store):
                trial.run(cells, store, here)
    except Exception as error:
        if trial.can_pass(error):
            raise  # Tune tries again, on a new worker
        why = f"{type(error).__name__}: {error}".partition("\n")[0]  # it is in its log
        return {"failed": why, "diverged": isinstance(error, NotFinite)}
    return {"failed": "", "diverged": False}


@functools.lru_cache(maxsize=1)
def _of_all(work) -> dict[str, Work]:
    import ray

    return ray.get(work)


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Inside, SIGTERM sets `_leave`; Ray's own handler would end the worker at once.

    Only the main thread may change handlers, and Tune runs trials in another: so the interpreter
    is asked to do it there.
    """
    before = []

    def take(_) -> int:
        before.append(signal.signal(signal.SIGTERM, lambda *_: _leave.set()))
        return 0

    def give_back(_) -> int:
        signal.signal(signal.SIGTERM, before[0])
        return 0

    _in_the_main_thread(take)
    try:
        yield
    finally:
        _in_the_main_thread(give_back)


def _in_the_main_thread(do: Callable[[object], int]) -> None:
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(do)
    _pending.append(call)  # it must live until it has been called
    ctypes.pythonapi.Py_AddPendingCall(call, None)


def _connect() -> None:
    """To the cluster that RAY_ADDRESS names, else to one of our own on this machine."""
    import ray

    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        why = _silent(address)  # which Ray itself would tell after three minutes of warnings
        if not why:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                return
            except Exception as failed:
                ray.shutdown()
                why = str(failed).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"no Ray at RAY_ADDRESS={address} ({why}): start it there, name the head of one as "
            f"HOST:6379, or unset RAY_ADDRESS to use this machine alone"
        )
    loopback = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
    for _ in range(STARTS):
        try:
            ray.init(
                address="local",  # not whatever cluster `ray start` has left on this machine
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **loopback,
            )
            break
        except Exception as failed:  # Ray raises no narrower one
            ray.shutdown()
            if "timed out during startup" not in str(failed):
                why = f"{type(failed).__name__}: {failed}".partition("\n")[0]
                raise ValueError(
                    f"Ray did not start on this machine ({why}): its folder, RAY_TMPDIR or "
                    f"/tmp/ray, must be writable and have room; its logs are there, in "
                    f"session_latest/logs"
                ) from failed
    else:
        raise ValueError(
            f"Ray did not start in {STARTS} attempts of 30 seconds: this machine is busy, run the "
            f"same again later"
        )
    token = Path.home() / ".ray" / "auth_token"  # Ray leaves it readable to everyone
    if token.exists():
        token.chmod(0o600)


@contextlib.contextmanager
def _headed(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, a head that has gone silent for good ends this process, with a sentence.

    So does Ray, a little later, in words of its own. No exception would do: the main thread waits
    inside Ray for the head by then. What the store has is whole at any moment.
    """
    import ray

    if ray.util.client.ray.is_connected():  # by ray://, which has a patience of its own
        yield
        return
    head = ray.get_runtime_context().gcs_address
    host, _, port = head.rpartition(":")
    patience_s = max(LOOK_S, float(os.environ.get(RAYS_PATIENCE_S, 60)) - BEFORE_S)

    def watch(stop: threading.Event) -> None:
        heard = time.monotonic()
        while not stop.wait(LOOK_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()
                heard = time.monotonic()
            except OSError as no:
                if (silent_s := time.monotonic() - heard) > patience_s:
                    say(
                        f"Ray's head at {head} has been silent for {silent_s:.0f} s "
                        f"({no.strerror or no}): it is given up. What is finished is kept: run the "
                        f"same again, on a cluster whose head is alive, to go on"
                    )
                    os._exit(1)

    with beside(watch):
        yield


def _silent(address: str) -> str:
    """Why nothing can be reached at HOST:PORT; "" where something can, or it is no such address."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        return ""
    if not host or not port or place.scheme not in ("", "ray"):
        return ""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection((host, port), timeout=PATIENCE_S).close()
            return ""
        except OSError as no:
            if time.monotonic() > until:
                return no.strerror or str(no)
        time.sleep(0.5)


class Room(NamedTuple):
    """What may run at a time."""

    trials: int
    gpus: float


def _room(
    resources: Resources, gpus: Collection[float], say: Callable[[str], None]
) -> Callable[[], Room]:
    """Says what may run: as many trials as were asked for, else as fit the nodes there are, or
    those that an autoscaler may add (`_to_come`).

    ValueError where none was asked for, and one of those that take so many `gpus` fits nowhere.
    """
    if resources.concurrent:
        return lambda: Room(resources.concurrent, INF)
    import ray

    def here() -> list[dict[str, float]]:
        nodes, more = [node["Resources"] for node in ray.nodes() if node["Alive"]], _to_come()
        return max(
            nodes, more, key=lambda all: [_slots(all, resources.cpu, of(gpus)) for of in (max, min)]
        )

    def look() -> Room:
        nodes = here()
        fit = _slots(nodes, resources.cpu, min(gpus))
        return Room(max(1, fit), sum(has.get("GPU", 0) for has in nodes))

    if not _slots(here(), resources.cpu, max(gpus)):
        raise ValueError(
            f"a trial takes {resources.cpu} cores and {max(gpus):g} GPUs, and no node of Ray has "
            f"them: lower cpu and gpu in the sweep's Resources, wait until nodes have joined or, "
            f"on a cluster that adds nodes, set concurrent to the trials to make room for"
        )

    fit, looked = look(), time.monotonic()

    def by_now() -> Room:
        nonlocal fit, looked
        if time.monotonic() - looked > LOOK_S:
            found, looked = look(), time.monotonic()  # one waits where all nodes are gone
            if found.trials != fit.trials:
                say(f"Ray's nodes have changed: at most {found.trials} trials at a time")
            fit = found
        return fit

    return by_now


def _to_come() -> list[dict[str, float]]:
    """The nodes that there may be at most, in MEDSSL_NODES: Ray does not say what its autoscaler
    could add, but who made the cluster knows (rayjob.py)."""
    return [
        {"CPU": group["CPU"], "GPU": group["GPU"]}
        for group in json.loads(os.environ.get("MEDSSL_NODES") or "[]")
        for _ in range(group["most"])
    ]


def _slots(nodes: Sequence[dict[str, float]], cpu: int, gpu: float) -> int:
    """Trials that fit the nodes as they are: more would only wait, or wake every node at once."""
    return sum(
        int(min([has.get("CPU", 0) / cpu] + ([has.get("GPU", 0) / gpu] if gpu else [])) + 1e-9)
        for has in nodes
    )


def _name(trial) -> str:
    return trial.config["encoder"]


def _why(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def _well(told: dict | None, point: bool) -> bool:
    """Whether a trial has done what others wait for; a point of a search may diverge."""
    told = told or {}
    return told.get("failed") == "" or (point and bool(told.get("diverged")))


def _failed(result) -> str:
    """What the trial reported at its end; empty where all went well."""
    return (result.metrics or {}).get("failed", "it was stopped")


def _unseen(store: Store) -> str:
    return f"it finished, but its results are not here: do all nodes see {store.root}?"
