"""How long is `medssl plan` of a hundred thousand cells?

    python tests/benchmarks/bench_plan.py            # four minutes

The whole command, imports and printing included, in a process of its own, on a store that has half
of the cells, whose history prices the others; medians, and the load is in the file. The growth is
what a cell takes from ten to a hundred thousand, over what it takes from one to ten: 1 is in
proportion.
Success: 100,000 cells take less than 5 s.
"""

import json
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

REPEATS = 3
SEEDS = 1, 10, 100  # a thousand cells each
RESULTS = Path(__file__).parent / "results" / "plan_cpu.json"
SWEEP = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["simclr", "byol", "dino", "mae"], image_size=28, epochs=100,
        backbone=["vit/tiny-14", "vit/small-14"],
        dataset="phantom/cells", target=["same", "phantom/organs"],
        eval=["knn", "linear_probe", "finetune"], label_fraction=[0.01, 0.03, 0.1, 0.3, 1.0],
        subset_seed=range(5), seed=range({seeds}),
    )
"""


def measure(folder: Path, seeds: int) -> dict[str, float]:
    file, store = folder / f"{seeds}.py", Store(folder / f"store{seeds}")
    file.write_text(SWEEP.format(seeds=seeds))
    cells = plan.load(file).cells()
    about = {"device": "cpu", "encoder_device": "cpu", "pretrain_s": 100.0, "eval_s": 1.0}
    about["finished_at"] = datetime.now(UTC)
    for cell in cells[::2]:
        results.save(store, cell, {"auroc": 0.5}, {}, about)
    results.table(store)  # as `medssl run` leaves it
    command = [sys.executable, "-m", "medssl", "plan", str(file), "--store", str(store.root)]
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True).stdout
        took.append(time.perf_counter() - start)
        assert f"{len(cells)} cells, {len(cells[::2])} done" in said, said
        assert "by what this store has measured" in said, said
    return {"cells": len(cells), "plan_s": round(median(took), 2)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        few, more, most = cases = [measure(Path(folder), seeds) for seeds in SEEDS]
    for case in cases:
        print(f"{case['cells']:>7,} cells: {case['plan_s']:.2f} s")
    first, then = (
        (b["plan_s"] - a["plan_s"]) / (b["cells"] - a["cells"])
        for a, b in ((few, more), (more, most))
    )
    found = {"environment": environment(), "cases": cases, "growth": round(then / first, 2)}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(f"growth {found['growth']:.2f}; {RESULTS}")


if __name__ == "__main__":
    main()
