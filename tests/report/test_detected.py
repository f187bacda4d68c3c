"""Intervals of out-of-distribution detection: both sides are drawn anew, each image by image."""

import hashlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from medssl import plan, results, stats
from medssl.cli import app
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


def kept_of(cell) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(cell.id, 16))
    skill = {"none": 0.5, "simclr": 1.5}[cell.encoder.method]
    found = {"target": np.eye(3, dtype=np.uint8)[np.arange(60) % 3]}
    for score in ("mahalanobis", "knn"):
        found[score] = np.float32(rng.normal(skill, 1, 60).round(1))
        found |= {f"{score}:{name}": np.float32(rng.normal(0, 1, m)) for name, m in M.items()}
    return found


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    file, store = folder / "sweep.py", Store(folder / "kept")
    file.write_text(FILE)
    cells = plan.load(file).cells()
    for cell in cells:
        kept = kept_of(cell)
        values = {name: value(kept, *asked) for name, asked in ASKED.items()}
        values |= {"ssd/auroc": 0.5, "knn/aupr_in": 0.5}
        results.save(store, cell, values, kept, {"task": "multi-class"})
    return file, store, cells


ASKED = {
    "auroc": ("mahalanobis", list(M)),
    "knn/auroc": ("knn", list(M)),
    "knn/auroc:far": ("knn", ["phantom/lesions", "phantom/xray"]),
    "knn/auroc:phantom/xray": ("knn", ["phantom/xray"]),
}


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
    assert ("DeLong" in out) == (metric == "knn/auroc:phantom/xray")


def test_what_was_not_kept_has_no_interval_and_other_metrics_are_a_sentence(swept):
    out = table(swept, "--metric", "ssd/auroc")[2]
    assert "no interval where ood keeps no scores that give it (4 cells" in out
    code, _, out = table(swept, "--metric", "knn/aupr_in")
    assert code == 2
    assert "SCORE/auroc:SET" in out
