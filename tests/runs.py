"""`medssl run` on a tiny sweep, as processes of their own: what tests of the sweep share."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from medssl import plan, results
from medssl.store import open_store

FILE = """
from medssl import Resources, Search, Sweep

SIMCLR = ("simclr", {"hidden_dim": 64, "out_dim": 32})  # narrow heads: checkpoints are small
BYOL = ("byol", {"hidden_dim": 64, "predictor_dim": 64, "out_dim": 32})

def sweep():
    given = dict(
        name="tiny", method=["none", SIMCLR], dataset="phantom/lesions", backbone="vit/tiny-14",
        image_size=28, epochs=2, warmup_epochs=1, learning_rate=1e-3, seed=[0, 1], eval="knn",
        label_fraction=[0.1, 1.0], resources=Resources(cpu=1, checkpoint_s=1),
    )
    return Sweep(**given | dict({changes}))
"""


class Runs:
    """`medssl run` on one sweep file and one store, as processes of their own."""

    def __init__(self, folder: Path, changes: str = "", env: dict | None = None, store: str = ""):
        self.file, self.store = folder / "tiny.py", open_store(store or folder / "store")
        fair = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}  # beside other tests
        self.env = {**os.environ, **fair, **(env or {})}
        self.change(changes)

    def change(self, changes: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(FILE.replace("{changes}", changes))

    def start(self, verb: str = "run", *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "medssl", verb, self.file, "--store", self.store.address]
        command += more
        return subprocess.Popen(
            command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, verb: str = "run") -> tuple[int, str]:
        return ended(self.start(verb))

    @property
    def cells(self):
        return plan.load(self.file).cells()

    def values(self) -> dict:
        """(cell, metric) -> value; fails where a row is there twice."""
        rows = results.table(self.store).to_pylist()
        found = {(r["cell"], r["metric"]): r["value"] for r in rows}
        assert len(found) == len(rows)
        return found

    def progress(self) -> list[dict]:
        names = self.store.names("progress", ".json")
        return [json.loads(self.store.read(f"progress/{name}.json")) for name in names]

    def encoders(self) -> dict[str, float]:
        files = (self.store.root / "encoders").glob("*.safetensors")
        return {f.name: f.stat().st_mtime for f in files}


def ended(process: subprocess.Popen, at_once: bool = False) -> tuple[int, str]:
    """Exit code and output; what hangs is not left behind for the next test."""
    if at_once:
        process.kill()
    if process.stdout.closed:
        return process.returncode, ""
    try:
        out, _ = process.communicate(timeout=600)
        return process.returncode, out
    finally:
        process.kill()


def after_an_epoch(runs: Runs, process: subprocess.Popen) -> dict:
    """What the first trial said that has an epoch behind it."""
    while not (found := [said for said in runs.progress() if said["curve"]]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found[0]
