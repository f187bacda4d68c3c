"""Intervals of out-of-distribution detection: both sides are drawn anew, each image by image."""

import hashlib
from statistics import NormalDist

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from medssl import plan, results, stats
from medssl.cli import app
from medssl.report import resampled
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr"], dataset="phantom/cells", epochs=1,
        backbone="vit/tiny-14", image_size=28, label_fraction=1.0, seed=[0, 1],
        eval=[("ood", {"near": "phantom/organs", "far": ["phantom/xray", "phantom/lesions"]})],
    )
"""
M = {"phantom/organs": 40, "phantom/xray": 90, "phantom/lesions": 30}
COUNT = 50


def kept_of(cell, sizes: dict[str, int] = M) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(cell.id, 16))
    skill = {"none": 0.5, "simclr": 1.5}[cell.encoder.method]
    found = {"target": np.eye(3, dtype=np.uint8)[np.arange(60) % 3]}
    for score, digits in (("mahalanobis", 5), ("knn", 1)):
        found[score] = np.float32(rng.normal(skill, 1, 60).round(digits))
        found |= {f"{score}:{name}": np.float32(rng.normal(0, 1, m)) for name, m in sizes.items()}
    return found


def fill(store: Store, cell, kept, **other: float) -> None:
    values = {name: value(kept, *asked) for name, asked in ASKED.items()}
    values |= {"ssd/auroc": 0.5, "knn/aupr_in": 0.5} | other
    results.save(store, cell, values, kept, {"task": "multi-class"})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    file, store = folder / "sweep.py", Store(folder / "kept")
    file.write_text(FILE)
    cells = plan.load(file).cells()
    for cell in cells:
        fill(store, cell, kept_of(cell))
    return file, store, cells


ASKED = {
    "auroc": ("mahalanobis", list(M)),
    "knn/auroc": ("knn", list(M)),
    "knn/auroc:far": ("knn", ["phantom/lesions", "phantom/xray"]),
    "knn/auroc:phantom/xray": ("knn", ["phantom/xray"]),
    "mahalanobis/auroc:phantom/xray": ("mahalanobis", ["phantom/xray"]),
}
ALONE = [metric for metric, (_, sets) in ASKED.items() if len(sets) == 1]


def value(kept, score: str, sets: list[str], counts=None) -> float:
    """The mean AUROC against the sets, of images as often as `counts` says, one by one."""
    found = []
    for name in sets:
        inside, outside = kept[score], kept[f"{score}:{name}"]
        if counts:
            inside, outside = np.repeat(inside, counts[""]), np.repeat(outside, counts[name])
        truth = np.arange(len(inside) + len(outside)) < len(inside)
        found.append(roc_auc_score(truth, np.concatenate([inside, outside])))
    return float(np.mean(found))


def drawn() -> list[dict[str, np.ndarray]]:
    """Of every resample the counts; a set's own, though another were as large."""
    seeds = {n: int.from_bytes(hashlib.sha256(n.encode()).digest()[:4], "big") for n in M}
    every = {"": stats.resamples(60, COUNT)}
    every |= {name: stats.resamples(m, COUNT, seeds[name]) for name, m in M.items()}
    return [{name: c_NR[:, r] for name, c_NR in every.items()} for r in range(1, 1 + COUNT)]


def table(swept, *options: str) -> tuple[int, list[list[str]], str]:
    file, store, _ = swept
    command = ["table", str(file), "--store", str(store.root), "--bootstrap", str(COUNT)]
    done = CliRunner().invoke(app, [*command, "--format", "markdown", *options])
    lines = [line.strip("| ").split(" | ") for line in done.output.splitlines() if "|" in line]
    return done.exit_code, lines, done.output


@pytest.mark.parametrize("metric", ASKED)
def test_numbers_intervals_and_differences_are_those_of_a_slow_version(swept, metric):
    code, lines, out = table(swept, "--metric", metric)
    assert code == 0, out
    assert f"ood {metric}" in out
    entries = [line for line in lines if line[0] == "phantom/cells"]
    means = {}
    for method in ("none", "simclr"):
        of = [c for c in swept[2] if c.encoder.method == method]
        means[method] = np.array([
            np.mean([value(kept_of(cell), *ASKED[metric], counts) for cell in of])
            for counts in [None, *drawn()]
        ])  # fmt: skip
        low, high = np.quantile(means[method][1:], [0.025, 0.975])
        (entry,) = [e[2] for e in entries if e[1] == method and not e[2].startswith(("+", "-"))]
        assert entry.startswith(f"{means[method][0]:.3f} ± ")
        assert f"[{low:.3f}, {high:.3f}]" in entry
    d_R = means["simclr"] - means["none"]
    low, high = np.quantile(d_R[1:], [0.025, 0.975])
    (entry,) = [e[2] for e in entries if e[2].startswith("+")]
    assert entry.startswith(f"{d_R[0]:+.3f} ± ")
    assert f"[{low:+.3f}, {high:+.3f}] p={stats.p_value(d_R):.3f}" in entry
    assert ("DeLong" in out) == (metric in ALONE)


def test_what_was_not_kept_has_no_interval_and_other_metrics_are_a_sentence(swept):
    out = table(swept, "--metric", "ssd/auroc")[2]
    assert "no interval where ood keeps no scores that give it (4 cells" in out
    code, _, out = table(swept, "--metric", "knn/aupr_in")
    assert code == 2
    assert "SCORE/auroc:SET" in out


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("metric", ALONE)
def test_a_file_has_delongs_p_of_the_scores_as_they_were_kept(swept, tmp_path, metric, kind):
    """By the whole covariance matrix of all seeds; no rounding is between."""
    out, score = tmp_path / f"x.{kind}", metric.partition("/")[0]
    code, _, said = table(swept, "--metric", metric, "--format", kind, "--out", str(out))
    assert code == 0, said
    read = (pyarrow.csv.read_csv(out) if kind == "csv" else pq.read_table(out)).to_pylist()
    s_MN, w_M = [], []
    for cell in swept[2]:
        kept = kept_of(cell)
        s_MN.append(np.concatenate([kept[score], kept[f"{score}:phantom/xray"]]))
        w_M.append(0.5 if cell.encoder.method == "simclr" else -0.5)
    auroc_M, covariance_MM = stats.delong(np.stack(s_MN), np.arange(len(s_MN[0])) < 60)
    z = np.dot(w_M, auroc_M) / np.sqrt(w_M @ covariance_MM @ np.array(w_M))
    expected = {"none": None, "simclr": pytest.approx(2 * NormalDist().cdf(-abs(z)), rel=1e-6)}
    assert {row["method"]: row["p_delong"] for row in read} == expected


@pytest.mark.parametrize(
    "others",
    [
        M | {"phantom/xray": 80},
        {"phantom/organs": 40, "phantom/xray-elsewhere": 90, "phantom/lesions": 30},
    ],
    ids=["of another size", "another set"],
)
def test_numbers_against_other_images_are_not_paired(swept, tmp_path, others):
    file, _, cells = swept
    store = Store(tmp_path)
    for cell in cells:
        against = others if cell.encoder.method == "simclr" else M
        kept = kept_of(cell, against)
        values = {"knn/auroc": value(kept, "knn", list(against))}
        results.save(store, cell, values, kept, {"task": "multi-class"})
    code, lines, out = table((file, store, cells), "--metric", "knn/auroc")
    assert code == 0, out
    numbers = [line[2] for line in lines if line[0] == "phantom/cells"]
    assert len(numbers) == 2  # no difference
    assert all("[" in number and "†" not in number for number in numbers)


def test_a_number_that_its_predictions_do_not_give_back_has_no_interval(swept, tmp_path):
    file, _, cells = swept
    store = Store(tmp_path)
    for cell in cells:
        true = value(kept_of(cell), *ASKED["knn/auroc"])
        wrong = 1e-8 * (cell.encoder.method == "simclr" and cell.encoder.seed == 0)
        fill(store, cell, kept_of(cell), **{"knn/auroc": true + wrong})
    _, lines, out = table((file, store, cells), "--metric", "knn/auroc")
    numbers = {line[1]: line[2] for line in lines if line[0] == "phantom/cells"}
    assert {method: "[" in number for method, number in numbers.items()} == {
        "none": True,
        "simclr": False,
    }
    assert "are of different runs; delete rows/CELL.parquet in the store and run" in out
    assert "(1 cell: " in out


def test_what_is_drawn_again_each_time_is_the_same(swept, monkeypatch):
    """Of sets too large to be kept, each has still its own seed."""
    told = table(swept, "--metric", "knn/auroc")
    monkeypatch.setattr(resampled, "KEPT", 1)
    assert table(swept, "--metric", "knn/auroc") == told
