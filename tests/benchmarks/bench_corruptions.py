"""What does a corrupted test image cost, beside its features?

    python tests/benchmarks/bench_corruptions.py      # a minute or two

Milliseconds of one core per image at severity 3, and as a share of what ResNet-18 (7x7 stem) takes
for it. Time of the process, not of the clock, so that others on the machine count less; the fastest
of each is told.
Success: the mean over the families of a set is below one, so that features decide the cost.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from medssl import backbones
from medssl.corruptions import BY_DATASET, FAMILIES, corrupt
from medssl.datasets import Images
from medssl.device import describe
from medssl.features import extract

REPEATS = 7  # of each case
IMAGES = {28: 256, 224: 12}
COLOUR = ("dermamnist", "pathmnist")
CASES = [(size, dataset) for size in IMAGES for dataset in ("pneumoniamnist", *COLOUR)]
RESULTS = Path(__file__).parent / "results" / "corruptions_cpu.json"


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(size: int, dataset: str) -> dict[str, object]:
    n, channels = IMAGES[size], 3 if dataset in COLOUR else 1
    rng, half = np.random.default_rng(0), np.full((1, channels), 0.5, np.float32)
    x_NHWC = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    t_NK, domain_N = np.ones((n, 1), np.float32), np.zeros(n, np.int64)
    images = Images(x_NHWC, t_NK, "", ("a",), half, half, domain_N, "")
    encoder = backbones.build("resnet/18-7x7", size)
    x_BCHW = (torch.from_numpy(x_NHWC).permute(0, 3, 1, 2) / 255).contiguous()
    index_B = torch.arange(n)
    families = [name for name in FAMILIES if name in BY_DATASET[dataset]]
    runs: dict[str, Callable[[], object]] = {
        "features": lambda: extract(encoder, images, torch.device("cpu"))
    }
    for name in families:
        runs[name] = lambda name=name: corrupt(x_BCHW, name, 3, index_B)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(REPEATS):
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run))
    features = best.pop("features")
    shares = {name: round(taken / features, 3) for name, taken in best.items()}
    return {
        "image_size": size,
        "dataset": dataset,
        "features_ms": round(1e3 * features / n, 3),
        "mean_share": round(mean(shares.values()), 3),
        "ms": {name: round(1e3 * taken / n, 3) for name, taken in best.items()},
        "share_of_features": shares,
    }


def main() -> None:
    torch.set_num_threads(1)
    cases = []
    for size, dataset in CASES:
        case = measure(size, dataset)
        cases.append(case)
        worst = max(case["share_of_features"], key=case["share_of_features"].get)
        print(
            f"{size:4d} px {dataset:15s} features {case['features_ms']:7.2f} ms"
            f" | mean corruption x {case['mean_share']} | {worst} x "
            f"{case['share_of_features'][worst]}"
        )
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe(torch.device("cpu")),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment, "cases": cases}, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
