"""Labels one by one, families of p, DeLong beside them, where the spread is from, and a file of it.

Predictions are made: scores in six decimals of a few images, so that a slow version has the answer.
"""

import re
from functools import cache
from statistics import NormalDist, fmean, stdev

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from medssl import plan, results, stats
from medssl.cli import app
from medssl.metrics import classification
from medssl.report import intervals, tables, variances
from medssl.report.resampled import Resampled
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr", "byol"], dataset="phantom/xray",
        backbone="vit/tiny-14", image_size=28, epochs=1, eval="knn", label_fraction=[0.1, 1.0],
        seed=[0, 1], subset_seed=[0, 1],
    )
"""
COUNT, N, K = 79, 110, 3  # resamples, test images, labels
SKILL = {"none": (0.6, 0.6, 0.6), "simclr": (2.5, 0.4, 0.8), "byol": (0.8, 2.5, 0.4)}  # by label
MANY, ONE = "multi-label, binary-class", "binary-class"


@cache
def predicted(cell, task: str, heads: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    t_NK, image_NK = rng.random((N, K)) < [0.5, 0.4, 0.25], rng.normal(size=(N, K))
    seed = 100 * cell.encoder.seed + 10 * cell.subset_seed + int(100 * cell.label_fraction)
    own_NK = np.random.default_rng([seed, list(SKILL).index(cell.encoder.method)]).normal(
        size=(N, K)
    )
    kept = {}
    for head in range(heads):
        z_NK = image_NK + 0.8 * own_NK + np.array(SKILL[cell.encoder.method]) * t_NK
        z_NK += 0.2 * np.random.default_rng([seed, head]).normal(size=(N, K))
        s_NK = np.round(1 / (1 + np.exp(-z_NK)), 6)
        if task == ONE:
            s_NK = np.stack([1 - s_NK[:, 2], s_NK[:, 2]], axis=1)
        kept["scores" + f"_head_{head}" * (head > 0)] = s_NK
    t_NK = np.stack([~t_NK[:, 2], t_NK[:, 2]], axis=1) if task == ONE else t_NK
    return kept | {"target": np.uint8(t_NK)}


def changed(tmp_path, *changes: tuple[str, str], task: str = MANY, heads: int = 1):
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "sweep.py").write_text(text)
    cells, store = plan.load(tmp_path / "sweep.py").cells(), Store(tmp_path / "kept")
    for cell in cells:
        kept = predicted(cell, task, heads)
        of_head = [
            dict(classification(s_NK, kept["target"], task))
            for name, s_NK in kept.items()
            if name != "target"
        ]
        metrics = {name: fmean(of[name] for of in of_head) for name in of_head[0]}
        results.save(store, cell, metrics, kept, {"task": task})
    return tmp_path / "sweep.py", store, cells


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return changed(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """One label, two heads."""
    return changed(tmp_path_factory.mktemp("binary"), task=ONE, heads=2)


def table(swept, *more: str, count: int = COUNT) -> str:
    file, store, _ = swept
    arguments = ["table", str(file), "--store", str(store.root), "--bootstrap", str(count), *more]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def parts(out: str) -> dict[str, tuple[list[list[str]], str]]:
    """Of markdown: title -> lines as their entries, and the caption."""
    found = {}
    for title, body in re.findall(r"\*\*(.+?)\*\*\n\n(.*?)(?=\n\*\*|\nnote|\Z)", out, re.S):
        lines = [x.strip("| ").split(" | ") for x in body.splitlines() if x.startswith("|")]
        found[title] = lines[2:], body.splitlines()[-1]
    return found


def asked(swept, metric: str = "auroc", **more) -> list[intervals.Compared]:
    _, store, cells = swept
    by_id = {cell.id: cell for cell in cells}
    rows = results.table(store, cells).to_pylist()
    found, _ = intervals.compare(
        rows, metric, lambda name: results.predictions(store, by_id[name]), COUNT, **more
    )
    return found


@cache
def slow_cell(cell, task: str, heads: int, label: int) -> np.ndarray:
    """(heads, 1 + COUNT) AUROC of one label, image by image."""
    kept = predicted(cell, task, heads)
    picked = [np.repeat(np.arange(N), c_N) for c_N in stats.resamples(N, COUNT).T]
    return np.array([
        [roc_auc_score(kept["target"][of, label], s_NK[of, label]) for of in picked]
        for name, s_NK in kept.items()
        if name != "target"
    ])  # fmt: skip


def slow(swept, label: int, task: str = MANY, heads: int = 1, **wanted) -> np.ndarray:
    """(seeds, 1 + COUNT), each the mean over subsets and heads."""
    of_seed: dict[int, list] = {}
    for cell in swept[2]:
        axes = vars(cell.encoder) | vars(cell)
        if all(axes[k] == v for k, v in wanted.items()):
            found = slow_cell(cell, task, heads, label).mean(0)
            of_seed.setdefault(axes["seed"], []).append(found)
    return np.array([np.mean(found, axis=0) for found in of_seed.values()])


def text(v_SR: np.ndarray, sign: str = "") -> str:
    low, high = np.quantile(v_SR.mean(0)[1:], [0.025, 0.975])
    number = f"{v_SR[:, 0].mean():{sign}.3f} ± {stdev(v_SR[:, 0]):.3f}"
    return f"{number} [{low:{sign}.3f}, {high:{sign}.3f}]"


def said(p: float) -> str:
    return f"p={p:.3f}" if p >= 0.001 else "p<0.001"


# label by label


def test_one_label_has_its_interval_and_difference(swept):
    found = parts(table(swept, "--metric", "auroc_2", "--format", "markdown"))
    (numbers, _), (differences, caption) = list(found.values())[:2]
    simclr_SR, none_SR = (
        slow(swept, 2, method=m, label_fraction=0.1) for m in ("simclr", "none")
    )  # fmt: skip
    assert numbers[1][2].removesuffix(" †") == text(simclr_SR)
    assert differences[0][2].partition(" p")[0] == text(simclr_SR - none_SR, "+")
    assert "over the 4 of this table" in caption


def test_per_label_every_label_is_a_line_and_then_their_mean(swept):
    found = parts(table(swept, "--per-label", "--format", "markdown"))
    lines, caption = found["knn auroc per label"]
    assert [line[1:3] for line in lines] == [
        [label, method] for label in ("0", "1", "2", "macro") for method in SKILL
    ]
    for label, method, *entries in (line[1:] for line in lines):
        for fraction, entry in zip((0.1, 1.0), entries, strict=True):
            wanted = {"method": method, "label_fraction": fraction}
            labels = range(K) if label == "macro" else [int(label)]
            v_SR = np.mean([slow(swept, k, **wanted) for k in labels], axis=0)
            assert entry.removesuffix(" †") == text(v_SR)
    assert "best of its column on this target and label" in caption


def test_what_may_be_best_is_of_one_label(swept):
    lines, _ = parts(table(swept, "--per-label", "--format", "markdown"))["knn auroc per label"]
    marked = {tuple(line[1:3]) for line in lines if "†" in line[4]}
    assert {of for of in marked if of[0] in "01"} == {("0", "simclr"), ("1", "byol")}
    assert {method for label, method in marked if label == "2"}


@pytest.mark.parametrize(
    ("correct", "adjusted", "name"),
    [
        ("holm", stats.holm, "Holm"),
        ("bh", stats.benjamini_hochberg, "Benjamini-Hochberg"),
    ],
)
def test_p_are_for_the_family_of_all_labels_and_their_mean(swept, correct, adjusted, name):
    raw = {}
    for label in ("0", "1", "2", "macro"):
        labels = range(K) if label == "macro" else [int(label)]
        for method in ("simclr", "byol"):
            for f in (0.1, 1.0):
                of, none = (
                    np.mean([slow(swept, k, method=m, label_fraction=f) for k in labels], (0, 1))
                    for m in (method, "none")
                )
                raw[label, method, f] = stats.p_value(of - none)
    right = dict(zip(raw, adjusted(list(raw.values())), strict=True))
    assert len(set(right.values())) > 2
    found = parts(table(swept, "--per-label", "--correct", correct, "--format", "markdown"))
    lines, caption = found["knn auroc per label, difference to none"]
    entries = {
        (line[1], line[2], f): entry
        for line in lines
        for f, entry in zip((0.1, 1.0), line[3:], strict=True)
    }
    assert entries.keys() == right.keys()
    for place, p in right.items():
        assert entries[place].removesuffix(" ‡").endswith(said(p))
    assert f"after {name} over the 16 of this table" in caption
    assert "same target, label, backbone" in caption
    assert "(12 of 16: it is of single AUROCs)" in caption


def test_one_column_alone_is_a_smaller_family(swept):
    found = parts(table(swept, "--per-label", "--at", "10%", "--format", "markdown"))
    lines, caption = found["knn auroc per label, difference to none"]
    assert {len(line) for line in lines} == {4}
    assert "over the 8 of this table" in caption
    whole = parts(table(swept, "--per-label", "--format", "markdown"))["knn auroc per label"][0]
    assert found["knn auroc per label"][0] == [line[:4] for line in whole]


def test_without_resamples_labels_are_lines_too(swept):
    file, store, _ = swept
    done = CliRunner().invoke(
        app, ["table", str(file), "--store", str(store.root), "--per-label", "--format", "markdown"]
    )
    ((lines, _),) = parts(done.output).values()
    whole = parts(table(swept, "--per-label", "--format", "markdown"))["knn auroc per label"][0]
    assert lines == [[re.sub(r" \[.*", "", entry) for entry in line] for line in whole]
    refused = ["--format", "csv", "--out", "x.csv", "--at", "10%"]
    done = CliRunner().invoke(app, ["table", str(file), "--store", str(store.root), *refused])
    assert done.exit_code == 2
    assert "holds every row: leave out --per-label and --at" in done.output


def test_labels_of_other_targets_are_others_so_they_have_no_ranks_and_stand_in_order():
    row = {
        "eval": "knn",
        "settings": "{}",
        "method": "none",
        "dataset": "d",
        "source": None,
        "value": 0.5,
    }
    row |= dict.fromkeys((*tables.RECIPE, "backbone", "init", "image_size", "recipe"), "")
    row |= {"shots": 0, "label_fraction": 1.0, "seed": 0}
    rows = [
        {**row, "target": target, "metric": metric, "method": method}
        for metric in ("auroc", *(f"auroc_{k}" for k in range(12)))
        for target in "cab"
        for method in ("none", "simclr")
    ]
    (grid,) = tables.grids(rows, "auroc", per_label=True)
    order = [line[:2] for line in grid.lines][::2]
    labels = [*map(str, range(12)), "macro"]
    assert order == [(target, label) for target in "cab" for label in labels]
    assert intervals._ranks(grid) == []
    (grid,) = tables.grids(rows, "auroc")
    assert len(grid.lines) == 6
    assert intervals._ranks(grid)


@pytest.mark.parametrize("metric", ["auroc", "recall_1"])
@pytest.mark.parametrize("positives", [1, 2, 4, 12, N - 4, N - 2])
def test_a_label_of_few_images_says_so_and_one_of_two_has_no_interval(tmp_path, positives, metric):
    """One positive never varies: whatever is far above it in the test set would be significant.

    Nor does one negative, of which recall knows nothing.
    """
    side = positives if metric == "recall_1" else min(positives, N - positives)
    made = changed(tmp_path, ("label_fraction=[0.1, 1.0]", "label_fraction=1.0"), task=ONE)
    for cell in made[2]:
        kept = predicted(cell, ONE, 1) | {"target": np.eye(2, dtype=np.uint8)[[0] * N]}
        kept["target"][:positives] = 0, 1
        metrics = dict(classification(kept["scores"], kept["target"], ONE))
        results.save(made[1], cell, metrics, kept, {"task": ONE})
    out = table(made, "--format", "markdown", "--metric", metric).replace("\\", "")
    absent = (
        "no interval where a label is that of fewer than 3 test images, or all but so few (6 cells"
    )
    assert (absent in out) == (side < 3)
    assert (f"{metric} of phantom/xray rests on 4 test images of a label" in out) == (side == 4)
    assert ("rests on" in out) == (side == 4)
    assert ("difference to none" in out) == (" [0." in out) == (side > 2)


# families


@pytest.mark.parametrize(("family", "count"), [(8, 200), (45, 1000), (100, 399), (8, 319)])
def test_advice_on_resamples_is_what_the_corrections_do(family, count):
    """k differences of the family are as extreme as can be, the others are nothing."""

    def found(adjusted, k: int) -> bool:
        return adjusted(np.r_[np.full(k, 2 / (count + 1)), np.ones(family - k)])[0] <= 0.05 + 1e-12

    least = next(k for k in range(1, family + 1) if found(stats.benjamini_hochberg, k))
    holm, bh = (intervals._too_few(family, count, correct) for correct in ("holm", "bh"))
    assert (holm == []) == (bh == []) == (least == 1) == found(stats.holm, 1)
    if least > 1:
        assert f"cannot give a p of {family} below 0.05 after Holm: --bootstrap" in holm[0]
        assert f"after Benjamini-Hochberg only where {least} or more of {family} are" in bh[0]
        assert f"--bootstrap {40 * family} " in holm[0]
        assert f"--bootstrap {40 * family} " in bh[0]
        assert intervals._too_few(family, 40 * family, "bh") == []


def test_too_few_resamples_for_any_family_are_told_so():
    assert "cannot give a p of 9 below 0.05 after Benjamini" in intervals._too_few(9, 30, "bh")[0]


# DeLong


def delong(binary, method: str, fraction: float) -> float:
    """p of a contrast of all heads, subsets and seeds, by the whole matrix."""
    scores, weight = [], []
    cells = [
        cell
        for cell in binary[2]
        if cell.encoder.method in (method, "none") and cell.label_fraction == fraction
    ]
    for cell in cells:
        kept = predicted(cell, ONE, 2)
        scores += [kept["scores"][:, 1], kept["scores_head_1"][:, 1]]
        sign = -1 if cell.encoder.method == "none" else 1
        weight += [sign / len(cells)] * 2
    auroc_M, covariance_MM = stats.delong(np.stack(scores), kept["target"][:, 1])
    weight = np.array(weight) / np.abs(weight).sum() * 2
    z = weight @ auroc_M / np.sqrt(weight @ covariance_MM @ weight)
    return 2 * NormalDist().cdf(-abs(z))


def test_delong_is_of_the_contrast_of_all_seeds_subsets_and_heads(binary):
    (one,) = asked(binary)
    assert len(one.differences) == 4
    for ((_, method), (_, fraction)), d in one.differences.items():
        assert d.delong == pytest.approx(delong(binary, method, fraction), abs=1e-9)
        a, b = (
            slow(binary, 1, ONE, 2, method=m, label_fraction=fraction) for m in (method, "none")
        )
        assert d.p == stats.p_value((a - b).mean(0))
    worst = max(abs(d.p - d.delong) for d in one.differences.values())
    lines, caption = parts(table(binary, "--format", "markdown"))["knn auroc, difference to none"]
    told = float(re.search(r"is within (\d\.\d{3}) of it", caption)[1])
    assert worst <= told < worst + 0.001
    assert "single AUROCs" not in caption  # all are
    doubted = any(d.doubted for d in one.differences.values())
    assert ("where there is ‡" in caption) == doubted == any("‡" in e for li in lines for e in li)


def test_a_mean_of_several_aurocs_and_an_accuracy_have_no_delong(swept, binary):
    for of, metric in ((swept, "auroc"), (binary, "accuracy"), (binary, "recall_1")):
        (one,) = asked(of, metric)
        assert one.differences
        assert {d.delong for d in one.differences.values()} == {None}
    assert "DeLong" not in table(binary, "--metric", "accuracy", "--format", "markdown")
    assert all(d.delong is not None for d in asked(swept, "auroc_1")[0].differences.values())


def test_seeds_of_uneven_subsets_weigh_as_in_the_table(tmp_path):
    made = changed(tmp_path, task=ONE)
    left = next(c for c in made[2] if (c.encoder.method, c.subset_seed) == ("simclr", 1))
    made[1].delete(f"rows/{left.id}.parquet")
    number = next(
        number
        for ((_, method), (_, fraction)), number in asked(made)[0].numbers.items()
        if (method, fraction) == ("simclr", 0.1)
    )
    assert len(number.of_seeds) == 3
    assert number.placed_N[number.t_N].mean() == pytest.approx(number.v_R[0], abs=1e-12)
    assert number.placed_N[~number.t_N].mean() == pytest.approx(number.v_R[0], abs=1e-12)


def test_where_delong_and_the_resamples_disagree_there_is_a_mark():
    def made(p: float, delong: float | None) -> intervals.Difference:
        return intervals.Difference(stats.Interval(0.1, 0.0, 0.2), None, p, 2 * p, delong)

    assert [made(*of).doubted for of in ((0.04, 0.06), (0.06, 0.04), (0.04, 0.01), (0.9, 0.1))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not made(0.01, None).doubted
    row = {"seed": 0, "label": "", "value": 0.5}
    grid = tables.Grid("t", ["method"], {("a",): {(0, 0.1): [row], (0, 1.0): [row]}})
    places = (("a",), (0, 0.1)), (("a",), (0, 1.0))
    of = intervals.Compared(
        grid, {}, set(), dict(zip(places, (made(0.04, 0.0517), made(0.02, 0.021)), strict=True))
    )
    (one,) = intervals._differences(of, "none", 1000, "Holm")
    assert one.rows[0][1:] == [
        "+0.100 [+0.000, +0.200] p=0.080 ‡",
        "+0.100 [+0.000, +0.200] p=0.040",
    ]
    assert "within 0.012 of it, and on the other side of 0.05 where there is ‡" in one.caption
    assert r"$^\ddagger$" in tables.latex([one])
    del of.differences[places[0]]
    assert (
        "always on the same side of 0.05"
        in intervals._differences(of, "none", 9, "Holm")[0].caption
    )


# where the spread is from


def test_the_spread_is_that_of_the_seeds_and_sampling_that_of_the_mean(binary):
    found = parts(table(binary, "--format", "markdown"))["knn auroc, where the spread is from"]
    lines = {(line[1], line[2]): line[3:] for line in found[0]}
    assert len(lines) == 6
    for (method, heading), line in lines.items():
        fraction = {"10%": 0.1, "100%": 1.0}[heading]
        cells = [
            c
            for c in binary[2]
            if (c.encoder.method, c.label_fraction) == (method, fraction)
        ]  # fmt: skip
        right = stats.components({
            (c.encoder.seed, c.subset_seed, head): v_R
            for c in cells
            for head, v_R in enumerate(slow_cell(c, ONE, 2, 1))
        })  # fmt: skip
        assert line[0] == ("2 x 2 x 2" if fraction < 1 else "2 x 1 x 2")
        for kind, entry in zip(variances.KINDS, line[1:], strict=True):
            v = getattr(right, kind)
            assert entry == ("0" if kind in right.cut else "-" if v != v else f"{v**0.5:.3f}")
        mean_R = slow(binary, 1, ONE, 2, method=method, label_fraction=fraction).mean(0)
        assert line[5] == f"{mean_R[1:].std(ddof=1):.3f}"
    assert lines["simclr", "100%"][2:4] == ["-", "-"]  # one subset: it has all labels


def number(values: dict) -> Resampled:
    return Resampled(np.r_[np.mean(list(values.values())), [0.5, 0.6, 0.7]], ("t", "d"), values)


def spread(*numbers: Resampled):
    lines = {(f"m{i}",): {(0, 1.0): []} for i in range(len(numbers))}
    grid = tables.Grid("t", ["method"], lines)
    of = {(line, (0, 1.0)): n for line, n in zip(lines, numbers, strict=True)}
    return variances.summary(grid, of)


def test_components_that_were_put_in_come_out_in_their_columns():
    exact = {(p, s, h): 0.5 + 0.1 * p + 0.02 * s for p in (0, 1) for s in (0, 1) for h in (0, 1)}
    (one,), notes = spread(number(exact))
    assert one.header == ["method", "labels", "seeds", *variances.KINDS]
    sd = [f"{step / 2**0.5:.3f}" for step in (0.1, 0.02)]  # of two that are so far apart
    assert one.rows == [["m0", "100%", "2 x 2 x 2", *sd, "0.000", "0.000", "0.100"]]
    assert not notes
    (one,), _ = spread(number({(0, 0, h): 0.1 * h for h in range(3)}))
    assert one.rows[0][2:] == ["1 x 1 x 3", "-", "-", "-", "0.100", "0.100"]
    (one,), _ = spread(
        number({(p, s, 0): 0.1 * s + (p == s) * 0.3 for p in (0, 1) for s in (0, 1)})
    )
    assert one.rows[0][3] == "0"  # estimated below it


def test_of_pretraining_seeds_alone_the_other_tables_tell_all():
    assert spread(number({(p, 0, 0): 0.1 * p for p in range(3)})) == ([], [])


def test_an_uneven_design_is_a_note_with_its_remedy_and_no_exception():
    even = {(p, s, 0): 0.1 * p + 0.3 * s for p in (0, 1) for s in (0, 1)}
    uneven = {of: v for of, v in even.items() if of != (1, 1, 0)}
    made, (note,) = spread(number(even), number(uneven), number(uneven))
    assert [row[0] for row in made[0].rows] == ["m0"]
    assert note.startswith("no variances of 2 numbers: every pretraining seed needs the same")
    assert note.endswith("run what is missing, or leave out what is over")
    assert spread(number(uneven)) == ([], [note.replace("2 numbers", "1 number")])


# a file


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_holds_the_numbers_of_the_tables_unrounded(binary, tmp_path, kind):
    out = tmp_path / f"x.{kind}"
    assert "6 numbers in" in table(binary, "--format", kind, "--out", str(out), "--correct", "bh")
    read = pyarrow.csv.read_csv(out) if kind == "csv" else pq.read_table(out)
    found = parts(table(binary, "--format", "markdown", "--correct", "bh"))
    shown, differences, spreads = (lines for lines, _ in found.values())
    shown = {(x[1], f): e for x in shown for f, e in zip((0.1, 1), x[2:], strict=True)}
    differences = {(x[1], f): e for x in differences for f, e in zip((0.1, 1), x[2:], strict=True)}
    spreads = {(x[1], {"10%": 0.1, "100%": 1}[x[2]]): x[4:] for x in spreads}
    for row in read.to_pylist():
        place = row["method"], row["label_fraction"]
        text = f"{row['value']:.3f} ± {row['sd']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        assert shown.pop(place) == text + " †" * row["may_be_best"]
        sd = [row[f"sd_{kind}"] for kind in variances.KINDS]
        for value, entry in zip(sd, spreads[place], strict=True):
            assert entry == "-" if value is None else float(entry) == pytest.approx(value, abs=6e-4)
        names = "diff", "diff_low", "diff_high", "p", "p_adjusted", "p_delong", "against"
        if row["method"] == "none":
            assert not any(row[name] for name in names)
            continue
        assert row["diff"] != round(row["diff"], 3)
        text = f"{row['diff']:+.3f} ± {row['diff_sd']:.3f} "
        text += f"[{row['diff_low']:+.3f}, {row['diff_high']:+.3f}] {said(row['p_adjusted'])}"
        doubted = (row["p"] <= 0.05) != (row["p_delong"] <= 0.05)
        assert differences.pop(place) == text + " ‡" * doubted
        assert (row["against"], row["correction"], row["family"]) == ("none", "bh", 4)
        assert (row["eval"], row["metric"], row["target"], row["seeds"], row["resamples"]) == (
            "knn", "auroc", "phantom/xray", 2, COUNT,
        )  # fmt: skip
    assert not shown
    assert not differences


def test_a_file_per_label_has_a_row_for_each_and_numbers_where_there_are_none(swept, tmp_path):
    out = tmp_path / "x.parquet"
    table(swept, "--per-label", "--at", "100%", "--format", "parquet", "--out", str(out))
    read = pq.read_table(out)
    assert [row["metric"] for row in read.to_pylist()] == [
        metric for metric in ("auroc_0", "auroc_1", "auroc_2", "auroc") for _ in SKILL
    ]
    assert {row["label"] for row in read.to_pylist()} == {"0", "1", "2", "macro"}
    assert str(read.schema.field("sd_head").type) == "double"  # of which there is none
    assert {row["sd_head"] for row in read.to_pylist()} == {None}


def test_a_number_without_predictions_is_in_the_file_without_an_interval(tmp_path):
    made = changed(tmp_path, task=ONE)
    lost = next(c for c in made[2] if c.encoder.method == "none" and c.label_fraction == 1)
    made[1].delete(f"predictions/{lost.id}.parquet")
    out = tmp_path / "x.parquet"
    told = table(made, "--format", "parquet", "--out", str(out))
    assert "note: no interval where predictions are missing" in told
    rows = {(r["method"], r["label_fraction"]): r for r in pq.read_table(out).to_pylist()}
    bare = rows["none", 1.0]
    assert bare["value"] > 0
    assert [bare[name] for name in ("low", "high", "may_be_best", "sd_sampling")] == [None] * 4
    assert rows["simclr", 1.0]["diff"] is None
    assert rows["simclr", 0.1]["diff"] is not None
