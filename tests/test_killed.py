"""Killed at any moment, a sweep ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import time

import pytest
from runs import Runs

from medssl import results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path):
    """Kill -9 of the driver, five times, and before two of them of a worker, at random moments."""
    long = "epochs=3, method=[SIMCLR, BYOL]"
    runs, calm, rng = Runs(tmp_path, long), Runs(tmp_path / "calm", long), random.Random(0)
    code, out = calm.run()
    assert code == 0, out
    workers = 0
    for victim in ("driver", "worker", "driver", "worker", "driver"):
        process = runs.start()
        began, wait = time.time(), rng.uniform(0, 3)
        while not _working(runs, since=began):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(wait)
        working = _working(runs, since=began)
        if victim == "worker" and working:
            with contextlib.suppress(ProcessLookupError):  # it had just ended
                os.kill(working[0]["pid"], signal.SIGKILL)
                workers += 1
            time.sleep(wait)  # Tune starts the trial again, and may be in the middle of it
        process.kill()
        process.communicate()
    code, out = runs.run()
    assert code == 0, out
    assert workers >= 1
    assert runs.values() == calm.values()
    assert results.missing(runs.cells, runs.store) == []


def _working(runs: Runs, since: float) -> list[dict]:
    return [
        said
        for said in runs.progress()
        if said["state"] in ("pretraining", "evaluating") and said["updated"] > since
    ]
