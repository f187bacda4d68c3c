"""How long do `medssl status` and `medssl table` take over two hundred thousand rows?

    python tests/benchmarks/bench_rows.py            # two minutes

11,200 finished cells of 18 metrics each, files of their own, as trials leave them. "first" is the
first reading, which opens every file and leaves `rows.parquet`; "later" is the median of three
whole commands, imports and printing included, in processes of their own.
Success: each later command takes less than 3 s.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from here import environment

from medssl import plan, results
from medssl.store import Store

CELLS = 11_200
RESULTS = Path(__file__).parent / "results" / "rows_cpu.json"
SWEEP = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="big", method=["simclr", "byol", "none", "dino"], image_size=28, epochs=100,
        dataset=["phantom/cells", "phantom/organs"], backbone="resnet/18-3x3",
        learning_rate=[1e-5 * i for i in range(1, {rates})], seed=range(10),
        eval="linear_probe", label_fraction=[0.1, 1.0],
    )
"""
HERE = {"code": "0.1.0+bench", "device": "cpu", "precision": "float32", "threads": 1}


METRICS = [f"metric_{number}" for number in range(17)] + ["auroc"]


def made(folder: Path) -> tuple[Path, Store, int]:
    """A sweep's file, its store, and how many cells that has."""
    rates, cells, file = 1, [], folder / "big.py"
    while len(cells) < CELLS:
        rates += 1
        file.write_text(SWEEP.format(rates=rates * 10))
        cells = plan.load(file).cells()
    store, dice = Store(folder / "store"), random.Random(0)
    about = {"finished_at": datetime.now(UTC), "task": "multi-class", **HERE}
    for cell in cells:
        results.save(store, cell, {metric: dice.random() for metric in METRICS}, {}, about)
    return file, store, len(cells)


def timed(*command: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "medssl", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, store, cells = made(Path(folder))
        asked = str(file), "--store", str(store.root)
        first = timed("table", *asked)
        assert (store.root / "rows.parquet").exists()
        later = {
            verb: round(median(timed(verb, *asked) for _ in range(3)), 2)
            for verb in ("table", "status")
        }
    result = {
        "environment": environment(),
        "cells": cells,
        "rows": cells * len(METRICS),
        "first_table_s": round(first, 1),
        "later_s": later,
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
