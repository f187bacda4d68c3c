"""Intervals of robustness's errors: of what was decided of each image, clean and corrupted."""

import re
from functools import cache
from statistics import mean

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score
from typer.testing import CliRunner

from medssl import plan, results, stats
from medssl.cli import app
from medssl.metrics import coded
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr", "byol"], backbone="vit/tiny-14", image_size=28,
        dataset=["phantom/cells", "phantom/lesions", "phantom/organs"], epochs=1, seed=[0, 1],
        eval=[("robustness", {"corruptions": "jpeg+pixelate"})], label_fraction=1.0,
    )
"""
FAMILIES = "jpeg", "pixelate"
UNDER = ["", *(f"{family}:{severity}" for family in FAMILIES for severity in range(1, 6))]
TASK = {
    "phantom/cells": "multi-class",
    "phantom/lesions": "multi-label, binary-class",
    "phantom/organs": "binary-class",
}
LABELS = {"phantom/cells": 3, "phantom/lesions": 10, "phantom/organs": 2}
WRONG = {"none": 0.2, "simclr": 0.1, "byol": 0.2}  # of clean images, and more of corrupted ones
N, COUNT = 80, 30  # test images, resamples
RATIOS = "error_ratio", "error_ratio:jpeg"
METRICS = "error", "clean_error", "added_error", "error:jpeg", "error:jpeg:3", "added_error:jpeg"


def target(dataset: str) -> np.ndarray:
    rng, labels = np.random.default_rng(len(dataset)), LABELS[dataset]
    if TASK[dataset].startswith("multi-label"):
        return rng.random((N, labels)) < 0.3
    return np.eye(labels, dtype=bool)[rng.permutation(N) % labels]


@cache
def said(cell) -> dict[str, np.ndarray]:
    """Which labels (N, K) each image was given under every condition."""
    rng, t_NK, found = np.random.default_rng(int(cell.id, 16)), target(cell.target), {}
    for at in UNDER:
        wrong = WRONG[cell.encoder.method] + 0.05 * int(at[-1:] or 0)
        if TASK[cell.target].startswith("multi-label"):
            found[at] = t_NK ^ (rng.random(t_NK.shape) < wrong)
        else:
            by = rng.integers(1, t_NK.shape[1], N) * (rng.random(N) < wrong)
            found[at] = np.eye(t_NK.shape[1], dtype=bool)[(t_NK.argmax(1) + by) % t_NK.shape[1]]
    return found


def kept_of(cell) -> dict[str, np.ndarray]:
    codes = {
        at: coded(hit_NK.astype(float), TASK[cell.target]) for at, hit_NK in said(cell).items()
    }
    found = {"target": np.uint8(target(cell.target)), "decided": codes[""]}
    for family in FAMILIES:
        found[f"decided_{family}"] = np.stack([codes[f"{family}:{s}"] for s in range(1, 6)], 1)
    return found


@cache
def slow(cell) -> list[dict[str, float]]:
    """Every error, of the test set and of each resample, image by image and by scikit-learn."""
    t_NK, found = target(cell.target), []

    def error(hit_NK: np.ndarray, picked: np.ndarray) -> float:
        if TASK[cell.target].startswith("multi-label"):
            t, hit = t_NK[picked], hit_NK[picked]
            both = (recall_score(a, b, average="macro") for a, b in ((t, hit), (~t, ~hit)))
            return 1 - mean(both)
        return 1 - balanced_accuracy_score(t_NK[picked].argmax(1), hit_NK[picked].argmax(1))

    for c_N in stats.resamples(N, COUNT).T:
        picked = np.repeat(np.arange(N), c_N)
        of = {f"error:{at}": error(hit_NK, picked) for at, hit_NK in said(cell).items()}
        clean = of.pop("error:")
        by = {name: mean(of[f"error:{name}:{s}"] for s in range(1, 6)) for name in FAMILIES}
        of |= {"clean_error": clean, "error": mean(by.values())}
        for name in FAMILIES:
            of[f"error:{name}"] = by[name]
            of[f"added_error:{name}"] = by[name] - clean
            of[f"error_ratio:{name}"] = by[name] / (clean or 1 / (2 * t_NK.size))
        for name in ("added_error", "error_ratio"):
            of[name] = mean(of[f"{name}:{family}"] for family in FAMILIES)
        found.append(of)
    return found


def fill(store: Store, cell, kept=None, **other: float) -> None:
    values = {**slow(cell)[0], "auroc": 0.7} | other
    results.save(store, cell, values, kept or kept_of(cell), {"task": TASK[cell.target]})


def made(folder, fill=fill):
    file, store = folder / "sweep.py", Store(folder / "kept")
    file.write_text(FILE)
    cells = plan.load(file).cells()
    for cell in cells:
        fill(store, cell)
    return file, store, cells


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return made(tmp_path_factory.mktemp("swept"))


def table(swept, *options: str, verb: str = "table") -> tuple[list[list[str]], str]:
    file, store, _ = swept
    command = [verb, str(file), "--store", str(store.root), "--bootstrap", str(COUNT)]
    done = CliRunner().invoke(app, [*command, "--format", "markdown", *options])
    assert done.exit_code == 0, done.output
    lines = [line.strip("| ").split(" | ") for line in done.output.splitlines() if "|" in line]
    return lines, " ".join(done.output.split())


@pytest.mark.parametrize("metric", [*METRICS, *RATIOS])
def test_numbers_intervals_and_differences_are_those_of_a_slow_version(swept, metric):
    lines, out = table(swept, "--metric", metric)
    assert "no interval" not in out
    for dataset in TASK:
        v_R = {}
        for method in WRONG:
            of = [c for c in swept[2] if (c.encoder.method, c.target) == (method, dataset)]
            v_R[method] = np.mean([[r[metric] for r in slow(cell)] for cell in of], axis=0)
        entries = [line[2] for line in lines if line[:2] == [dataset, "simclr"]]
        low, high = np.quantile(v_R["simclr"][1:], [0.025, 0.975])
        number = next(e for e in entries if not e.startswith(("+", "-")))
        assert number.startswith(f"{v_R['simclr'][0]:.3f} ± ")
        assert f"[{low:.3f}, {high:.3f}]" in number
        d_R = v_R["simclr"] - v_R["none"]
        low, high = np.quantile(d_R[1:], [0.025, 0.975])
        (difference,) = [e for e in entries if e.startswith(("+", "-"))]
        assert difference.startswith(f"{d_R[0]:+.3f} ± ")
        assert f"[{low:+.3f}, {high:+.3f}] p=" in difference


def test_the_smaller_error_is_the_better(swept):
    """By a mark, by ranks, and where labels needed are counted."""
    lines, _ = table(swept, "--metric", "error")
    numbers = {tuple(line[:2]): line[2] for line in lines if "[0." in line[-1] and "±" in line[-1]}
    assert len(numbers) == 9
    for dataset in TASK:
        assert numbers[dataset, "simclr"].endswith("†")
    assert not numbers["phantom/lesions", "none"].endswith("†")
    ranks = {line[0]: line[1] for line in lines if line[0] in WRONG and len(line) == 2}
    assert ranks["simclr"].startswith("1.00")


@pytest.mark.parametrize(("at_a_tenth", "expected"), [(0.1, "<= 10 %"), (0.3, "32 %")])
def test_fewer_labels_reach_a_smaller_error(tmp_path, at_a_tenth, expected):
    """0.2 is none's with all labels; halfway from 0.3 to 0.1 is so in log10 of the share."""
    file, store = tmp_path / "sweep.py", Store(tmp_path / "kept")
    file.write_text(FILE.replace("label_fraction=1.0", "label_fraction=[0.1, 1.0]"))
    cells = plan.load(file).cells()
    of = {("none", 0.1): 0.4, ("none", 1.0): 0.2, ("simclr", 0.1): at_a_tenth, ("simclr", 1.0): 0.1}
    for cell in cells:
        error = of.get((cell.encoder.method, cell.label_fraction), 0.5)
        kept = {"target": np.uint8(target(cell.target))}
        results.save(store, cell, {"error": error}, kept, {"task": TASK[cell.target]})
    lines, _ = table((file, store, cells), "--metric", "error", verb="needed")
    found = {line[1]: line[-1] for line in lines if line[0] == "phantom/cells"}
    assert found == {"none": "100 %", "simclr": expected, "byol": "not reached"}


def test_cells_of_before_keep_their_spread_and_have_a_note(tmp_path):
    def older(store, cell):
        kept = kept_of(cell)
        fill(store, cell, {"target": kept["target"]} if cell.encoder.method == "simclr" else kept)

    lines, out = table(made(tmp_path, older), "--metric", "error")
    numbers = {line[1]: line[2] for line in lines if line[0] == "phantom/cells"}
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", numbers["simclr"])
    assert "[" in numbers["none"]
    assert (
        "no interval where an earlier version measured robustness, and kept nothing of each image; "
        "delete rows/CELL.parquet in the store and run the sweep again (6 cells: " in out
    )


@pytest.mark.parametrize("metric", ["error", "error_ratio", "error:jpeg:3"])
def test_a_number_that_is_not_given_back_has_no_interval(tmp_path, metric):
    def wrong(store, cell):
        by = 1e-8 * (cell.encoder.method == "simclr" and cell.encoder.seed == 0)
        fill(store, cell, **{metric: slow(cell)[0][metric] + by})

    lines, out = table(made(tmp_path, wrong), "--metric", metric)
    assert {line[1]: "[" in line[2] for line in lines if line[:1] == ["phantom/cells"]} == {
        "none": True,
        "simclr": False,
        "byol": True,
    }
    assert "are of different runs" in out
    assert "(3 cells: " in out


def test_an_auroc_of_corrupted_images_has_no_interval(swept):
    lines, out = table(swept, "--metric", "auroc")
    assert "no interval where robustness keeps no scores that give it (18 cells" in out
    assert not [line for line in lines if "[" in line[-1]]


def test_errors_on_other_test_images_are_not_paired(tmp_path):
    def turned(store, cell):
        kept = kept_of(cell)
        if cell.encoder.method == "simclr":  # the same numbers, the images in another order
            kept = {name: a[::-1] for name, a in kept.items()}
        fill(store, cell, kept)

    lines, _ = table(made(tmp_path, turned), "--metric", "error")
    assert len([line for line in lines if line[:2] == ["phantom/cells", "simclr"]]) == 1
    assert len([line for line in lines if line[:2] == ["phantom/cells", "byol"]]) == 2


def test_what_decided_alike_does_not_differ(tmp_path):
    def alike(store, cell):
        seed = cell.encoder.seed
        one = next(c for c in cells if (c.target, c.encoder.seed) == (cell.target, seed))
        results.save(store, cell, slow(one)[0], kept_of(one), {"task": TASK[cell.target]})

    (tmp_path / "sweep.py").write_text(FILE)
    cells = plan.load(tmp_path / "sweep.py").cells()
    lines, _ = table(made(tmp_path, alike), "--metric", "added_error")
    differences = [line[2] for line in lines if line[-1].startswith("+")]
    assert len(differences) == 6
    assert all(d.startswith("+0.000") and "[+0.000, +0.000] p=1.000" in d for d in differences)
