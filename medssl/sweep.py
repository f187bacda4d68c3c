"""Ray's door. Ray decides where and when a trial runs; the results table decides what is left.

    missing cells, grouped by encoder -> one Tune trial each -> medssl.trial.run on a worker

Tune's own state is scratch: to resume, or to add cells, a sweep is run again. A lost worker is
retried by Tune; a bug, a diverged loss or bad data is recorded by the trial and not retried, for
the same steps would give the same end. Workers are shared by the trials that follow one another, so
the seconds of importing torch are paid once per slot.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl import results
from medssl.spec import Cell, Resources
from medssl.store import Store

DEFAULTS = {  # each undoes something of Ray's that would hurt a sweep
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` every worker would start through uv
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # TensorBoardX would import torch in the driver
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # Tune's state is scratch here: write it rarely
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would wait for the trials, which keep what they have
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, without its warning
}


STARTS = 3  # attempts at a Ray of our own: it gives itself 30 s, too few on a busy machine
OBJECT_STORE = 200_000_000  # bytes; only specs travel through it, so Ray's 30% of memory is waste


@dataclass(frozen=True)
class Job:
    """What every trial of a sweep is told; it travels to the workers."""

    store: Path
    data: Path | None
    weights: str | None  # the folder MEDSSL_WEIGHTS
    code: str
    resources: Resources
    gpu: float  # resources.gpu, decided


def run(
    cells: Sequence[Cell],
    store: Store,
    data: Path | None,
    code: str,
    resources: Resources,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Runs one trial per encoder of `cells`, the missing ones; blocks until the last has ended.

    Returns why, by encoder id, of the trials whose worker died once too often. What was measured,
    and what failed with a word, is in the store. Ctrl-C ends it early and raises nothing.
    ValueError where a trial fits nowhere.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import tune

    todo: dict[str, list[Cell]] = {}
    for cell in cells:
        todo.setdefault(cell.encoder.id, []).append(cell)
    say("starting Ray")
    _connect()
    has = ray.cluster_resources()
    gpu = resources.gpu if resources.gpu is not None else float(has.get("GPU", 0) > 0)
    slots = resources.concurrent or _slots(has, resources.cpu, gpu)
    say(
        f"Ray has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs; a trial takes "
        f"{resources.cpu} and {gpu:g}; at most {slots} at a time"
    )
    job = Job(store.root, data, os.environ.get("MEDSSL_WEIGHTS"), code, resources, gpu)
    scratch = store.root / "tune" / f"{time.time_ns()}"
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, job=job, todo=todo), {"cpu": resources.cpu, "gpu": gpu}
        ),
        param_space={"encoder": tune.grid_search(list(todo))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            failure_config=tune.FailureConfig(max_failures=resources.retries),
            verbose=0,
        ),
    )
    try:
        found = tuner.fit()
    except KeyboardInterrupt:
        say("stopping; what is finished is kept")
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
        return {}
    # where a reused worker died early, r.config is the trial's before it: the folder says which
    lost = {Path(r.path).name: _why(r.error) for r in found if r.error is not None}
    for trial in found:
        id, ended_well = Path(trial.path).name, (trial.metrics or {}).get("failed") == 0
        if trial.error is None and ended_well and results.missing(todo[id], store):
            lost[id] = f"it finished, but its results are not here: do all nodes see {store.root}?"
    shutil.rmtree(scratch, ignore_errors=True)
    return lost


def _trial(config: dict, job: Job, todo: dict[str, list[Cell]]) -> None:
    """On a worker: what is still missing of one encoder's cells."""
    import torch
    from ray import tune

    from medssl import device, trial

    torch.set_num_threads(job.resources.cpu)
    if job.weights:
        os.environ["MEDSSL_WEIGHTS"] = job.weights
    store = Store(job.store)
    here = trial.Here(device.pick(gpu=job.gpu > 0), job.data, job.code, job.resources.checkpoint_s)
    failed = 0
    if cells := results.missing(todo[config["encoder"]], store):
        try:
            trial.run(cells, store, here)
        except Exception as error:
            if trial.can_pass(error):
                raise  # Tune tries again, on a new worker
            failed = 1  # the trial has recorded it, and the sweep goes on
    tune.report({"failed": failed})


def _connect() -> None:
    """To the cluster that RAY_ADDRESS names, else to one of our own on this machine."""
    import ray

    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return
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
                raise
    else:
        raise ValueError(
            f"Ray did not start in {STARTS} attempts of 30 seconds: this machine is busy, run the "
            f"same again later"
        )
    token = Path.home() / ".ray" / "auth_token"  # Ray leaves it readable to everyone
    if token.exists():
        token.chmod(0o600)


def _slots(has: dict[str, float], cpu: int, gpu: float) -> int:
    """Trials that fit the cluster as it is: more would only wait, or wake every node at once."""
    fit = int(min([has.get("CPU", 0) // cpu] + ([has.get("GPU", 0) // gpu] if gpu else [])))
    if fit < 1:
        raise ValueError(
            f"a trial takes {cpu} cores and {gpu:g} GPUs, and Ray has {has.get('CPU', 0):g} and "
            f"{has.get('GPU', 0):g}: lower cpu and gpu in the sweep's Resources or, on a cluster "
            f"that adds nodes, set concurrent to the trials that it should make room for"
        )
    return fit


def _name(trial) -> str:
    return trial.config["encoder"]


def _why(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
