"""What does a trial cost beside its work, and does a driver grow with their number?

    python tests/benchmarks/bench_driver.py            # five minutes; 200 trials: ... 200

Trials whose cells have rows already, so that a worker finds nothing to do: through `sweep.run`, on
a Ray of two cores: seconds for each, and the driver's memory as trials go by. Ray's start is told
apart; the workers' imports are in the trials' time.
Success: under 60 ms for each of 2,000 trials, and memory that does not grow with their number.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from here import environment

from medssl import sweep as engine
from medssl.spec import Resources, Sweep
from medssl.store import Store

RESULTS = Path(__file__).parent / "results" / "driver_cpu.json"


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main(trials: int) -> None:
    cells = Sweep(
        name="empty",
        method="simclr",
        dataset="phantom/lesions",
        backbone="vit/tiny-14",
        image_size=28,
        seed=range(trials),
        eval="knn",
        label_fraction=[0.01, 0.1, 1.0],
    ).cells()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for cell in cells:
            store.write(f"rows/{cell.id}.parquet", b"-")
        after = {}  # trials that have ended -> the driver's memory
        ended, start = engine.Queue.ended, time.perf_counter()

        def watched(queue, *args, **kwargs) -> None:
            ended(queue, *args, **kwargs)
            after[len(after) + 1] = rss_mib()

        engine.Queue.ended = watched
        said = []
        engine.run(
            cells,
            store,
            None,
            "bench",
            Resources(cpu=1),
            lambda line: said.append((line, time.perf_counter() - start)),
        )
        whole_s = time.perf_counter() - start
    up_s = next(at for line, at in said if line.startswith("Ray has"))
    trials_s = whole_s - up_s
    marks = [trials // 10, trials // 4, trials // 2, 3 * trials // 4, trials]
    result = {
        "environment": environment(),
        "trials": trials,
        "cells": len(cells),
        "ray_start_s": round(up_s, 1),
        "trials_s": round(trials_s, 1),
        "ms_per_trial": round(1000 * trials_s / trials, 1),
        "driver_mib_after_trials": {mark: round(after[mark]) for mark in marks},
        "driver_mib_at_end": round(rss_mib()),  # Tune imports pandas then, and reads all results
    }
    print(json.dumps(result, indent=2))
    if trials >= 2000:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000)
