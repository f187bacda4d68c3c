"""What do evaluations cost beside what one would write instead?

    python tests/benchmarks/bench_evals.py            # minutes on 2 cores

Each beside its plain alternative, in turn within each repeat; medians. Data as PneumoniaMNIST's
behind a ResNet-18: 4,708 x 512 features, two classes, three shares of the labels (1, 10, 100 %).

    features    `extract` beside a DataLoader of one process, one image at a time through
                torchvision's transforms, the same encoder in float32, 256 at a time
    probe       the penalty path of three shares beside the 100-epoch SGD protocol of the paper
                (9 settings x 5 seeds x 3 shares, a few of them trained, the rest extrapolated), and
                beside scikit-learn's logistic regression at the same penalties, all of the path
    knn         beside scikit-learn's neighbours, brute force, the same cosine
    ood         Mahalanobis beside scikit-learn's covariance and its distance to each class

Intervals have bench_bootstrap.py, the SGD protocol in one pass bench_heads.py, and corruptions
bench_corruptions.py. Success: the path 20 times faster than the SGD protocol, accuracies within 0.3
points or better.
"""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench_heads import (
    BATCH,
    EPOCHS,
    GRID,
    LOOPED,
    SEEDS,
    SHARES,
    accuracies,
    drawn,
    known,
    loop,
)
from here import environment
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import DataLoader
from torchvision import transforms as T

from medssl import backbones, datasets, device
from medssl.evals import Features, _heads, _scores, knn, linear_probe
from medssl.features import Judged, extract

RESULTS = Path(__file__).parent / "results" / "evals_cpu.json"
REPEATS = 3


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    made = run()
    return time.perf_counter() - start, made


def beside(ours: Callable, theirs: dict[str, Callable]) -> tuple[dict, dict]:
    """Seconds of each, medians of turns; and what each made last."""
    took: dict[str, list[float]] = {name: [] for name in ("medssl", *theirs)}
    made = {}
    for _ in range(REPEATS):
        for name, run in {"medssl": ours, **theirs}.items():
            spent, made[name] = seconds(run)
            took[name].append(spent)
    mid = {name: median(each) for name, each in took.items()}
    ratios = {name: round(mid[name] / mid["medssl"], 1) for name in theirs}
    return {"seconds": {k: round(v, 3) for k, v in mid.items()}, "ratio": ratios}, made


def features() -> dict[str, object]:
    images = datasets.load("phantom/organs", "train", 28).part(np.arange(2048) % 512)
    encoder = backbones.build("resnet/18-7x7", 28)
    where = device.pick(gpu=False)
    level, spread = (float(s.mean()) for s in (images.mean_DC, images.std_DC))
    one_by_one = T.Compose(
        [T.ToTensor(), T.Normalize([level], [spread]), T.Lambda(lambda x: x.expand(3, -1, -1))]
    )

    @torch.no_grad()
    def plain() -> torch.Tensor:
        encoder.to(memory_format=torch.contiguous_format).eval()
        pictures = [Image.fromarray(x.squeeze()) for x in images.x_NHWC]
        batches = DataLoader([one_by_one(picture) for picture in pictures], 256)
        return torch.cat([encoder(x_BCHW) for x_BCHW in batches])

    return beside(lambda: extract(encoder, images, where), {"torchvision, float32": plain})[0]


def probe(data: dict[str, Features]) -> dict[str, object]:
    config = linear_probe.Config()
    steps = torch.linspace(config.strongest, config.weakest, config.steps)
    mean_D, spread_D = data["train"].x_ND.mean(0), data["train"].x_ND.std(0)
    y_N = data["test"].t_NK.argmax(1)

    def path() -> list[float]:
        found = []
        for share in SHARES:
            load = lambda dataset, split, source: data[split]  # noqa: E731
            subject = Judged(lambda: None, load, "a/1", "multi-class", share)
            found.append(dict(linear_probe.evaluate(subject, config))["accuracy"])
        return found

    def protocol() -> None:
        for share in SHARES:
            for seed, place in LOOPED:
                loop(known(data["train"], share), data["val"], seed, GRID[place])

    def sklearn() -> list[float]:
        found = []
        for share in SHARES:
            train = known(data["train"], share)
            x = {
                "train": ((train.x_ND - mean_D) / spread_D).numpy(),
                **{s: ((data[s].x_ND - mean_D) / spread_D).numpy() for s in ("val", "test")},
            }
            fits = []
            for step in steps.tolist():
                inverse = 1 / (10**step * len(train.x_ND))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fit = LogisticRegression(C=inverse, max_iter=300)
                    fits.append(fit.fit(x["train"], train.t_NK.argmax(1).numpy()))
            val_N = data["val"].t_NK.argmax(1).numpy()
            loss = [
                -np.log(fit.predict_proba(x["val"])[np.arange(len(val_N)), val_N] + 1e-12).mean()
                for fit in fits
            ]
            best = fits[int(np.argmin(loss))]
            found.append(float((best.predict(x["test"]) == y_N.numpy()).mean()))
        return found

    told, made = beside(path, {"sgd, 9 of 135 heads": protocol, "scikit-learn": sklearn})
    heads = len(SHARES) * len(SEEDS) * len(GRID)
    trained = len(SHARES) * len(LOOPED)
    told["ratio"]["sgd, 135 heads, extrapolated"] = round(
        told["seconds"]["sgd, 9 of 135 heads"] * heads / trained / told["seconds"]["medssl"], 1
    )
    told["accuracy"] = {name: made[name] for name in ("medssl", "scikit-learn")}
    sets = [known(data["train"], share) for share in SHARES]
    told["accuracy"]["sgd, mean of seeds"] = [
        float(accuracies(heads.w_SGLD[:, heads.chosen()], data["test"]).mean())
        for heads in _heads.train(sets, data["val"], SEEDS, GRID, False, EPOCHS, BATCH)
    ]
    return told


def neighbours(data: dict[str, Features]) -> dict[str, object]:
    bank, test, config = data["train"], data["test"], knn.Config()
    y_N = bank.t_NK.argmax(1).numpy()

    def theirs() -> np.ndarray:
        near = KNeighborsClassifier(
            config.neighbours,
            algorithm="brute",
            metric="cosine",
            weights=lambda distance: np.exp((1 - distance) / config.temperature),
        )
        return near.fit(bank.x_ND.numpy(), y_N).predict_proba(test.x_ND.numpy())

    told, made = beside(lambda: knn.vote(bank, test.x_ND, config), {"scikit-learn": theirs})
    told["difference_max"] = float(np.abs(made["medssl"].numpy() - made["scikit-learn"]).max())
    return told


def ood(data: dict[str, Features]) -> dict[str, object]:
    train, test = data["train"], data["test"]
    class_N = train.t_NK.argmax(1)

    def theirs() -> np.ndarray:
        x_ND, y_N, seen = train.x_ND.double().numpy(), class_N.numpy(), test.x_ND.double().numpy()
        mean_CD = np.stack([x_ND[y_N == c].mean(0) for c in np.unique(y_N)])
        fit = EmpiricalCovariance(assume_centered=True).fit(x_ND - mean_CD[y_N])
        return -np.min([fit.mahalanobis(seen - mean) for mean in mean_CD], 0)

    def ours() -> torch.Tensor:
        return _scores.mahalanobis(train.x_ND, class_N)(test.x_ND)

    told, made = beside(ours, {"scikit-learn": theirs})
    ranks = [
        np.argsort(np.argsort(each)) for each in (made["medssl"].numpy(), made["scikit-learn"])
    ]
    told["rank_correlation"] = float(np.corrcoef(*ranks)[0, 1])
    return told


def main() -> None:
    torch.manual_seed(0)
    data = drawn(2)
    cases = {}
    for name, run in (
        ("features", features),
        ("probe", lambda: probe(data)),
        ("knn", lambda: neighbours(data)),
        ("ood", lambda: ood(data)),
    ):
        cases[name] = run()
        print(name, json.dumps(cases[name]), flush=True)
    result = {"environment": environment(), "threads": torch.get_num_threads(), "cases": cases}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
