"""Killed at any moment, or with its files spoilt, a sweep ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import Runs, ended

from medssl import results

FAULTS = int(os.environ.get("MEDSSL_FAULTS", 28))
# Files are read when the next driver starts; a driver takes half a minute to be at work again
KINDS = "worker", "file", "worker", "file", "driver", "node"

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900 + 60 * FAULTS)]


def test_whatever_is_killed_or_spoilt_it_ends_as_if_undisturbed(tmp_path):
    """Faults of four kinds in turn, at moments of a seeded dice: kill -9 of the driver, of a
    worker, of the node (Ray's raylet), and a file of the store cut short."""
    big = "seed=[0, 1, 2], label_fraction=[0.1, 0.2, 0.4, 0.7, 1.0]"
    work = "train_images=256, batch_size=64"  # an epoch is a second or two
    epochs = f"{work}, epochs={6 + FAULTS * 2 // 3}"  # so that there is work left to be disturbed
    runs, calm = (Runs(folder, f"{big}, {epochs}") for folder in (tmp_path, tmp_path / "calm"))
    assert len(runs.cells) == 30
    code, out = calm.run()
    assert code == 0, out
    dice, done, process = random.Random(0), dict.fromkeys(KINDS, 0), None
    for fault in range(FAULTS):
        kind = KINDS[fault % len(KINDS)]
        if process is None or process.poll() is not None:
            process, began = runs.start(), time.time()
        while not (working := _working(runs, since=began)):
            if process.poll() is not None:  # what was disturbed before was all that was left
                break
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 3))
        done[kind] += _disturbed(kind, runs, process, working, dice)
        if kind in ("driver", "node"):  # a worker's trial is started again by Tune
            ended(process, at_once=True)
        began = time.time()
    ended(process, at_once=True)
    code, out = runs.run()
    assert code == 0, out
    assert sum(done.values()) >= FAULTS - max(1, FAULTS // 9), done  # 25 of 28
    assert runs.values() == calm.values()
    assert results.missing(runs.cells, runs.store) == []
    print(f"disturbed: {done}")


def _disturbed(kind: str, runs: Runs, process, working: list[dict], dice) -> bool:
    """Does it; whether there was something to be disturbed."""
    if kind == "file":
        kept = [
            f for f in runs.store.root.rglob("*") if f.suffix in (".parquet", ".safetensors", ".pt")
        ]
        kept = sorted(f for f in kept if f.parent.name != "predictions")
        if kept:
            victim = dice.choice(kept)
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that is no longer needed
                os.truncate(victim, victim.stat().st_size // 2)
        return bool(kept)
    pids = {
        "driver": [process.pid],
        "worker": [said["pid"] for said in working[:1]],
        "node": _below(process.pid, "raylet/raylet"),
    }[kind]
    alive, hit = process.poll() is None, False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it had just ended
            os.kill(pid, signal.SIGKILL)
            hit = True
    return alive and hit


def _below(parent: int, name: str) -> list[int]:
    """Processes that a process has started, whose command has the name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            of = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if of == parent and name in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def _working(runs: Runs, since: float) -> list[dict]:
    return [
        said
        for said in runs.progress()
        if said["state"] in ("pretraining", "evaluating") and said["updated"] > since
    ]
