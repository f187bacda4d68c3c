"""How long do 1,000 resamples of a test set take, beside scikit-learn in a loop?

    python tests/benchmarks/bench_bootstrap.py            # a minute

Test sets of MedMNIST's sizes, float32 softmax scores as an evaluation keeps them, macro AUROC. The
loop is timed on `LOOPED` resamples of each test set, in turn with ours, and scaled up to all; on
these the two must agree to 1e-12. Medians are reported, and the load is in the file.
Success: OrganAMNIST's 17,778 images and 11 labels take less than 20 s on two cores.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import scipy
import sklearn
from sklearn.metrics import roc_auc_score

from medssl import stats

RESAMPLES = 1000
REPEATS = 5
LOOPED = 3  # resamples that scikit-learn judges in each repeat
CASES = {"dermamnist": (2005, 7), "organamnist": (17778, 11), "tissuemnist": (47280, 8)}
RESULTS = Path(__file__).parent / "results" / "bootstrap_cpu.json"

# N test images, K labels, R the test set and its resamples


def seconds(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def measure(name: str, n: int, labels: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    t_NK = np.eye(labels, dtype=np.uint8)[rng.integers(labels, size=n)]
    e_NK = np.exp(rng.normal(size=(n, labels)) + 2 * t_NK)
    s_NK = np.float32(e_NK / e_NK.sum(1, keepdims=True))
    c_NR = stats.resamples(n, RESAMPLES)

    def theirs() -> np.ndarray:
        picks = [np.repeat(np.arange(n), c_N) for c_N in c_NR[:, 1 : 1 + LOOPED].T]
        return np.array([
            np.mean([roc_auc_score(t_NK[i, k], s_NK[i, k]) for k in range(labels)]) for i in picks
        ])  # fmt: skip

    drawn_s, our_s, their_s = [], [], []
    for _ in range(REPEATS):
        drawn_s.append(seconds(lambda: stats.resamples(n, RESAMPLES))[0])
        took, ours = seconds(lambda: stats.score(s_NK, t_NK, "multi-class", "auroc", c_NR))
        our_s.append(took)
        took, right = seconds(theirs)
        their_s.append(took * RESAMPLES / LOOPED)
        assert np.abs(ours[1 : 1 + LOOPED] - right).max() < 1e-12
    return {
        "test_set": name,
        "images": n,
        "labels": labels,
        "resamples": RESAMPLES,
        "draw_s": round(median(drawn_s), 2),  # once for all cells of a test set
        "score_s": round(median(our_s), 2),  # of each cell
        "score_s_best": round(min(our_s), 2),
        "sklearn_loop_s": round(median(their_s), 1),
        "ratio": round(median(their_s) / median(our_s), 1),
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    cases = []
    print(f"{RESAMPLES:,} resamples on {os.cpu_count()} cores of {cpu()}, medians of {REPEATS}")
    for name, (n, labels) in CASES.items():
        cases.append(case := measure(name, n, labels))
        print(
            f"{n:6,} x {labels:2}  draw {case['draw_s']:5.2f} s  score {case['score_s']:5.2f} s"
            f" | sklearn loop {case['sklearn_loop_s']:7.1f} s | x {case['ratio']}"
        )
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment, "cases": cases}, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
