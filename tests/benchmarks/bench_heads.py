"""How much faster are 135 linear heads in one pass than one after another?

    python tests/benchmarks/bench_heads.py            # minutes; torch takes all cores, in all cases

Nine settings x five seeds x three shares of 4,708 training images (1, 10, 100 %), 512 features, 524
validation images: PneumoniaMNIST behind a ResNet-18, generated. "alone" is the same code, one head
a call. "loop" is what one would write: Linear, cross entropy, autograd, SGD; three heads of each
share, the rest extrapolated. All run in turn within each repeat, so that a busy machine slows all;
medians are reported, and the load is in the file. The heads are compared too, on 624 test images.
Success: in one pass at least 20 times faster, and nowhere more than 0.3 points of accuracy away.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.datasets._splits import subset
from medssl.evals import Features, _heads

SIZES = {"train": 4708, "val": 524, "test": 624}
FEATURES = 512
SHARES = (0.01, 0.1, 1.0)
SEEDS = range(5)
GRID = [_heads.Setting(rate, decay) for rate in (0.1, 0.01, 0.001) for decay in (0.0, 0.01, 0.1)]
EPOCHS, BATCH = 100, 256
REPEATS = 5
LOOPED = [(0, 0), (2, 4), (4, 8)]  # seed and setting of the heads that the loop trains
RESULTS = Path(__file__).parent / "results" / "heads_cpu.json"


def drawn(classes: int) -> dict[str, Features]:
    """Features as of a ReLU and a pooling, in which classes overlap."""
    g = torch.Generator().manual_seed(0)
    centre_KD = 0.08 * torch.randn(classes, FEATURES, generator=g)
    found = {}
    for split, n in SIZES.items():
        y_N = torch.randint(classes, (n,), generator=g)
        x_ND = (centre_KD[y_N] + torch.randn(n, FEATURES, generator=g)).relu()
        found[split] = Features(x_ND, F.one_hot(y_N, classes).float())
    return found


def known(train: Features, share: float) -> Features:
    keep = torch.from_numpy(subset(train.t_NK.numpy(), share, 0))
    return Features(train.x_ND[keep], train.t_NK[keep])


def loop(train: Features, val: Features, seed: int, setting: _heads.Setting) -> None:
    line = nn.Linear(FEATURES, train.t_NK.shape[1])
    rate, decay = setting
    optimizer = torch.optim.SGD(line.parameters(), rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 80])
    g, y_N, val_N = torch.Generator().manual_seed(seed), train.t_NK.argmax(1), val.t_NK.argmax(1)
    best = -1.0
    for _ in range(EPOCHS):
        for picked in torch.randperm(len(y_N), generator=g).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(line(train.x_ND[picked]), y_N[picked]).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            right = (line(val.x_ND).argmax(1) == val_N).float().mean().item()
        if right > best:
            best, kept = right, {k: v.clone() for k, v in line.state_dict().items()}
    line.load_state_dict(kept)


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    made = run()
    return time.perf_counter() - start, made


def accuracies(w_LD: Iterable[Tensor], test: Features) -> Tensor:
    """Of each head, on test."""
    y_N = test.t_NK.argmax(1)
    scores = [_heads.scores(w, test.x_ND, many=False) for w in w_LD]
    return torch.stack([(s.argmax(1) == y_N).float().mean() for s in scores])


def measure(classes: int) -> dict[str, object]:
    data = drawn(classes)
    sets, val = [known(data["train"], share) for share in SHARES], data["val"]
    every = list(product(range(len(SHARES)), SEEDS, range(len(GRID))))

    def one_pass() -> list[Tensor]:
        found = _heads.train(sets, val, SEEDS, GRID, False, EPOCHS, BATCH)
        return [found[share].w_SGLD[seed, setting] for share, seed, setting in every]

    def alone() -> list[Tensor]:
        return [
            _heads.train([sets[share]], val, [seed], [GRID[setting]], False, EPOCHS, BATCH)[
                0
            ].w_SGLD[0, 0]
            for share, seed, setting in every
        ]

    def looped() -> float:
        """Seconds for all heads, from a few of each share."""
        took = [
            seconds(lambda s=s, seed=seed, g=g: loop(s, val, seed, GRID[g]))[0]
            for s in sets
            for seed, g in LOOPED
        ]
        return sum(took) * len(every) / len(took)

    one_pass(), looped()  # what is first is slow
    pass_s, alone_s, loop_s = [], [], []
    for _ in range(REPEATS):
        took, together = seconds(one_pass)
        pass_s.append(took)
        took, each = seconds(alone)
        alone_s.append(took)
        loop_s.append(looped())
    mine, theirs = accuracies(together, data["test"]), accuracies(each, data["test"])
    return {
        "classes": classes,
        "heads": len(every),
        "one_pass_s": round(median(pass_s), 3),
        "one_pass_s_all": [round(s, 3) for s in pass_s],
        "alone_s": round(median(alone_s), 2),
        "alone_s_all": [round(s, 2) for s in alone_s],
        "loop_s_extrapolated": round(median(loop_s), 2),
        "ratio_to_alone": round(median(alone_s) / median(pass_s), 1),
        "ratio_to_loop": round(median(loop_s) / median(pass_s), 1),
        "accuracy_mean": round(mine.mean().item(), 4),
        "accuracy_difference_max": (mine - theirs).abs().max().item(),
        "weight_difference_max": max(
            (a - b).abs().max().item() for a, b in zip(together, each, strict=True)
        ),
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    load = [round(os.getloadavg()[0], 2)]
    print(f"{torch.get_num_threads()} threads of {cpu()}, medians of {REPEATS}")
    cases = []
    for classes in (2, 8):
        cases.append(case := measure(classes))
        print(
            f"{classes} classes: one pass {case['one_pass_s']} s | alone {case['alone_s']} s, "
            f"x {case['ratio_to_alone']} | loop {case['loop_s_extrapolated']} s, "
            f"x {case['ratio_to_loop']} | accuracy differs by {case['accuracy_difference_max']:.4f}"
        )
        load.append(round(os.getloadavg()[0], 2))
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_1min": load,  # before, and after each case; a quiet machine ends at `threads`
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if "--dry" in sys.argv:
        return
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment, "cases": cases}, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
