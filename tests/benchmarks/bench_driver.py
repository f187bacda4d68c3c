"""What does a trial cost beside its work, and does a driver grow with their number?

    python tests/benchmarks/bench_driver.py            # five minutes; 200 trials: ... 200

Trials whose cells have rows already, so that a worker finds nothing to do: through `sweep.run`, on
a Ray of two cores. Between the first 100 trials and the last: seconds for each, and the driver's
memory. Ray's start and the workers' imports are in the whole, and told apart.
Success: under 60 ms for each of 2,000 trials, and memory that does not grow by more than Ray's own.
"""

import json
import resource
import sys
import tempfile
import threading
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
        measured, stop = [], threading.Event()

        def watch() -> None:
            while not stop.wait(2):
                measured.append((time.perf_counter() - start, rss_mib()))

        start = time.perf_counter()
        threading.Thread(target=watch, daemon=True).start()
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
        stop.set()
    up_s = next(at for line, at in said if line.startswith("Ray has"))
    half = [rss for at, rss in measured if at > up_s + (whole_s - up_s) / 2]
    result = {
        "environment": environment(),
        "trials": trials,
        "cells": len(cells),
        "ray_start_s": round(up_s, 1),
        "trials_s": round(whole_s - up_s, 1),
        "ms_per_trial": round(1000 * (whole_s - up_s) / trials, 1),
        "driver_mib_at_half": round(half[0]) if half else None,
        "driver_mib_at_end": round(rss_mib()),
    }
    print(json.dumps(result, indent=2))
    if trials >= 2000:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000)
