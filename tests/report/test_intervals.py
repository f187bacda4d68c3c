"""What `--bootstrap` says is what a slow version says, image by image; the rest is in notes."""

import re
import subprocess
import sys
from functools import cache
from statistics import mean, stdev

import numpy as np
import pytest
from typer.testing import CliRunner

from medssl import plan, results, stats
from medssl.cli import app
from medssl.metrics import classification
from medssl.report import intervals, tables
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr", "byol"], dataset=["phantom/cells", "phantom/organs"],
        backbone="vit/tiny-14", image_size=28, epochs=1, eval="knn", label_fraction=[0.1, 1.0],
        seed=[0, 1], subset_seed=[0, 1],
    )
"""
SKILL = {"none": 0.3, "simclr": 1.0, "byol": 0.9}
TASK = {"phantom/cells": "multi-class", "phantom/organs": "binary-class"}
COUNT = 60  # resamples
N = {"phantom/cells": 90, "phantom/organs": 70}  # test images


def target(dataset: str, task: str) -> np.ndarray:
    rng = np.random.default_rng(len(dataset))
    n = N.get(dataset, 80)
    if task.startswith("multi-label"):
        return rng.random((n, 4)) < 0.3
    classes = 2 if task == "binary-class" else 3
    return np.eye(classes)[rng.permutation(n) % classes]


def predicted(cell) -> dict[str, np.ndarray]:
    """Better for better methods, and about the same mistakes of all on one image."""
    task = TASK.get(cell.target, "multi-class")
    t_NK = target(cell.target, task)
    image_NK = np.random.default_rng(7).normal(size=t_NK.shape)
    own_NK = np.random.default_rng(int(cell.id, 16)).normal(size=t_NK.shape)
    z_NK = image_NK + 0.3 * own_NK + SKILL[cell.encoder.method] * t_NK
    if task.startswith("multi-label"):
        return {"scores": np.float32(1 / (1 + np.exp(-z_NK))), "target": np.uint8(t_NK)}
    e_NK = np.exp(z_NK)
    return {"scores": np.float32(e_NK / e_NK.sum(1, keepdims=True)), "target": np.uint8(t_NK)}


def fill(store: Store, cells) -> None:
    for cell in cells:
        kept = predicted(cell)
        task = TASK.get(cell.target, "multi-class")
        metrics = {"ece": 0.1, **dict(classification(kept["scores"], kept["target"], task))}
        results.save(store, cell, metrics, kept, {"task": task})


def changed(tmp_path, *changes: tuple[str, str]):
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "sweep.py"
    file.write_text(text)
    cells = plan.load(file).cells()
    store = Store(tmp_path / "kept")
    fill(store, cells)
    return str(file), store, cells


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return changed(tmp_path_factory.mktemp("swept"))


def table(file: str, store: Store, *more: str, count: int = COUNT) -> tuple[int, str]:
    arguments = ["table", file, "--store", str(store.root), "--bootstrap", str(count), *more]
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


def markdown(*arguments, **named) -> list[list[str]]:
    """Every line of every table but that of variances as its entries."""
    code, out = table(*arguments, "--format", "markdown", **named)
    assert code == 0, out
    out = out.partition("where the spread is from")[0]
    return [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]


def auroc(s_N: np.ndarray, t_N: np.ndarray) -> float:
    """Pair by pair."""
    up_N1, down_N = s_N[t_N == 1][:, None], s_N[t_N == 0]
    return np.mean((up_N1 > down_N) + 0.5 * (up_N1 == down_N))


@cache
def slow_cell(cell) -> np.ndarray:
    kept = predicted(cell)
    first = 1 if TASK[cell.target] == "binary-class" else 0
    values = []
    for c_N in stats.resamples(len(kept["target"]), COUNT).T:
        picked = np.repeat(np.arange(len(c_N)), c_N)
        s_NK, t_NK = (kept[name][picked, first:] for name in ("scores", "target"))
        values.append(mean(auroc(*of) for of in zip(s_NK.T, t_NK.T, strict=True)))
    return np.array(values)


def slow(cells, **wanted) -> np.ndarray:
    """(seeds, 1 + COUNT) AUROC of the cells that have these values."""
    of_seed: dict[int, list] = {0: [], 1: []}
    for cell in cells:
        axes = vars(cell.encoder) | vars(cell)
        if all(axes[k] == v for k, v in wanted.items()):
            of_seed[axes["seed"]].append(slow_cell(cell))
    return np.array([np.mean(found, axis=0) for found in of_seed.values()])


def test_numbers_intervals_and_differences_are_those_of_a_slow_version(swept):
    file, store, cells = swept
    lines = markdown(file, store)
    for dataset, fraction, column in (("phantom/cells", 0.1, 2), ("phantom/organs", 1.0, 3)):
        wanted = {"target": dataset, "label_fraction": fraction}
        none_SR, simclr_SR = (slow(cells, **wanted, method=m) for m in ("none", "simclr"))
        numbers, differences = (line[column] for line in lines if line[:2] == [dataset, "simclr"])
        low, high = np.quantile(simclr_SR.mean(0)[1:], [0.025, 0.975])
        spread = stdev(simclr_SR[:, 0])
        expected = f"{mean(simclr_SR[:, 0]):.3f} ± {spread:.3f} [{low:.3f}, {high:.3f}]"
        assert numbers.removesuffix(" †") == expected
        d_SR = simclr_SR - none_SR
        low, high = np.quantile(d_SR.mean(0)[1:], [0.025, 0.975])
        expected = f"{d_SR[:, 0].mean():+.3f} ± {stdev(d_SR[:, 0]):.3f} [{low:+.3f}, {high:+.3f}]"
        assert differences.partition(" p")[0] == expected


def test_p_are_holms_over_all_differences_of_the_table(swept):
    file, store, cells = swept
    raw = {}
    for line in ((d, m) for d in N for m in ("simclr", "byol")):
        for fraction in (0.1, 1.0):
            wanted = {"target": line[0], "label_fraction": fraction}
            d_SR = slow(cells, **wanted, method=line[1]) - slow(cells, **wanted, method="none")
            raw[line, fraction] = stats.p_value(d_SR.mean(0))
    assert len(raw) == 8
    right = dict(zip(raw, stats.holm(list(raw.values())), strict=True))
    assert any(right[k] != raw[k] for k in raw)
    found = [line for line in markdown(file, store) if " p" in line[-1]]
    assert len(found) == 4  # none has no difference to itself
    for dataset, method, *columns in found:
        for fraction, text in zip((0.1, 1.0), columns, strict=True):
            p = right[(dataset, method), fraction]
            assert text.endswith(f" p={p:.3f}" if p >= 0.001 else " p<0.001")


def test_lines_that_may_be_best_are_marked_within_target_and_column(swept):
    file, store, cells = swept
    lines = markdown(file, store)[2:8]
    marked = 0
    for dataset in N:
        for column, fraction in ((2, 0.1), (3, 1.0)):
            wanted = {"target": dataset, "label_fraction": fraction}
            v_MR = np.stack([slow(cells, **wanted, method=m).mean(0) for m in SKILL])
            inside = stats.may_be_best(v_MR)
            found = [line[column].endswith(" †") for line in lines if line[0] == dataset]
            assert found == list(inside)
            marked += sum(found)
    assert 4 <= marked < 12


def test_what_has_no_predictions_keeps_its_number_and_is_in_the_notes(tmp_path):
    file, store, cells = changed(tmp_path)
    whole = markdown(file, store)
    lost, other = (
        next(c for c in cells if c.target == d and c.encoder.method == "simclr") for d in N
    )
    store.delete(f"predictions/{lost.id}.parquet")
    kept = predicted(other)
    results.save(store, other, {"auroc": 0.123}, kept, {"task": TASK[other.target]})
    code, out = table(file, store, "--format", "markdown")
    assert code == 0
    told = "note: no interval where predictions are missing or cannot be read (1 cell: "
    assert told + lost.id in out
    told = "scored again, give another number than the table has: the two are of different runs; "
    assert f"{told}delete rows/CELL.parquet in the store and run" in out
    assert f"again (1 cell: {other.id})" in out
    store.delete(f"rows/{other.id}.parquet")  # as it says: then the cell is missing
    assert results.missing(cells, store) == [other]
    results.save(store, other, {"auroc": 0.123}, kept, {"task": TASK[other.target]})
    lines = markdown(file, store)
    assert lines[3][2:] == [re.sub(r" \[.*", "", whole[3][2]), whole[3][3]]
    assert [line[2] for line in lines if line[1] == "simclr"][2:] == ["-", "-"]  # differences
    results.save(store, other, dict(classification(*kept.values(), TASK[other.target])), kept, {})
    assert (
        f"a row of an earlier version does not say its task (1 cell: {other.id})"
        in table(file, store)[1]
    )
    store.write(f"predictions/{lost.id}.parquet", b"PAR1 torn")
    assert f"missing or cannot be read (1 cell: {lost.id})" in table(file, store)[1]


def test_a_number_of_uneven_seeds_is_resampled_as_it_is_averaged(tmp_path):
    """A seed with one subset counts as much as one with two; its missing cell is no note."""
    file, store, cells = changed(tmp_path)
    wanted = {"target": "phantom/cells", "label_fraction": 0.1, "method": "simclr"}
    left = next(c for c in cells if (c.encoder.method, c.subset_seed) == ("simclr", 1))
    store.delete(f"rows/{left.id}.parquet")
    v_R = slow([c for c in cells if c != left], **wanted).mean(0)
    low, high = np.quantile(v_R[1:], [0.025, 0.975])
    entry = markdown(file, store)[3][2]
    assert entry.startswith(f"{v_R[0]:.3f} ± ")
    assert f"[{low:.3f}, {high:.3f}]" in entry
    notes = [line for line in table(file, store)[1].splitlines() if line.startswith("note")]
    assert len(notes) == 3
    assert "60 resamples" in notes[0]
    assert "1 of 8 differences to none are of means over other pretraining or subset" in notes[1]
    assert "no variances of 1 number: every pretraining seed needs the same subset" in notes[2]
    differences = [line for line in markdown(file, store) if line[2].startswith("+")]
    paired = {tuple(line[:2]): " ± " in line[2] for line in differences}
    assert paired.pop(("phantom/cells", "simclr")) is False  # of other labelled images
    assert set(paired.values()) == {True}


def test_a_difference_of_means_over_other_seeds_is_noted(tmp_path):
    """Three seeds of one against two of the other: the third's luck is in the difference."""
    file, store, cells = changed(tmp_path)
    assert "than its own" not in table(file, store)[1].replace("\n", " ")
    for cell in cells:
        if (cell.encoder.method, cell.encoder.seed, cell.target) == ("byol", 1, "phantom/cells"):
            store.delete(f"rows/{cell.id}.parquet")
    out = " ".join(table(file, store)[1].split())
    assert (
        "note: 2 of 8 differences to none are of means over other pretraining or subset seeds "
        "than its own: run what is missing (phantom/cells, byol)"
    ) in out


def test_several_heads_of_one_encoder_are_averaged_on_each_resample(tmp_path):
    _, store, cells = changed(tmp_path)
    cell = next(c for c in cells if (c.encoder.method, c.target) == ("none", "phantom/organs"))
    kept = predicted(cell)
    turned = {"scores_head_1": kept["scores"][:, ::-1].copy()}
    both = [kept["scores"], turned["scores_head_1"]]
    auroc = mean(dict(classification(s, kept["target"], "binary-class"))["auroc"] for s in both)
    results.save(store, cell, {"auroc": auroc}, kept | turned, {"task": "binary-class"})
    row = next(r for r in results.table(store, [cell]).to_pylist())
    number = intervals.Predictions(by_id(store, cells), "auroc", COUNT).number([row])
    assert number.v_R == pytest.approx(np.full(1 + COUNT, 0.5))  # what one gains the other loses


def test_what_was_judged_on_other_images_is_not_paired(tmp_path):
    file, store, cells = changed(tmp_path)

    def turned_round(method: str, seeds: tuple[int, ...]) -> None:
        for cell in cells:
            if (cell.encoder.method, cell.target) == (method, "phantom/cells"):
                kept = predicted(cell)
                if cell.encoder.seed in seeds:  # the same numbers, the images in another order
                    kept = {name: array[::-1] for name, array in kept.items()}
                metrics = dict(classification(kept["scores"], kept["target"], "multi-class"))
                results.save(store, cell, metrics, kept, {"task": "multi-class"})

    turned_round("simclr", (1,))
    _, out = table(file, store)
    assert "note: no interval where the seeds of a number have other test images (6 cells: " in out
    turned_round("simclr", (0, 1))
    lines = [line for line in markdown(file, store) if line[:2] == ["phantom/cells", "simclr"]]
    assert len(lines) == 1  # no difference
    assert "[" in lines[0][2]
    assert "†" not in lines[0][2]  # alone with its images


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--metric", "ece"], "no intervals of 'ece': kept predictions of test images give auroc,"),
        (["--format", "csv"], "writes a file: name it with --out FILE"),
        (["--at", "5-shot"], "no column '5-shot': choose from 10%, 100%"),
        (
            ["--metric", "accuracy", "--per-label"],
            "no 'accuracy' of single labels: choose from auroc",
        ),
        (["--bootstrap", "0", "--correct", "bh"], "add --bootstrap 1000"),
        (["--against", "dino"], "no 'dino' to compare with: choose from byol, none, simclr"),
        (["--bootstrap", "0", "--against", "none"], "add --bootstrap 1000"),
    ],
)
def test_what_cannot_be_is_a_sentence(swept, more, sentence):
    code, out = table(*swept[:2], *more)
    assert code == 2
    assert sentence in " ".join(out.split())


def test_the_baseline_is_the_one_that_is_asked_for(swept):
    file, store, _ = swept
    found = markdown(file, store, "--against", "simclr")
    differences = [line[:2] for line in found if " p" in line[-1]]
    assert differences == [[d, m] for d in N for m in ("none", "byol")]
    assert "difference to simclr" in table(file, store, "--against", "simclr")[1]


def test_a_baseline_shares_backbone_and_init_and_without_one_there_is_no_difference(tmp_path):
    two = ('backbone="vit/tiny-14"', 'backbone=["vit/tiny-14", "vit/tiny-7"]')
    drop = ("subset_seed=[0, 1],", "drop={'': lambda c: c.encoder.method == 'none' and "
            "c.encoder.backbone == 'vit/tiny-7'},")  # fmt: skip
    file, store, cells = changed(tmp_path, two, drop)
    found = markdown(file, store)
    differences = [line[:3] for line in found if " p" in line[-1]]
    assert differences == [[d, "vit/tiny-14", m] for d in N for m in ("simclr", "byol")]
    rows = results.table(store, cells).to_pylist()
    made, _ = intervals.summaries(
        [row for row in rows if row["method"] != "none"], "auroc", by_id(store, cells), 50
    )
    assert [one.title for one in made] == ["knn auroc"]


def by_id(store, cells):
    found = {cell.id: cell for cell in cells}
    return lambda name: results.predictions(store, found[name])


def test_a_baseline_of_a_recipe_that_varies_is_the_one_of_the_same_recipe(tmp_path):
    file, store, _ = changed(tmp_path, ("epochs=1", "epochs=1, learning_rate=[1e-3, 1e-4]"))
    found = markdown(file, store, "--against", "byol")
    differences = [line[:3] for line in found if " p" in line[-1]]
    assert differences == [[d, lr, "simclr"] for d in N for lr in ("0.001", "0.0001")]


TARGETS = ('"phantom/cells", "phantom/organs"', '"phantom/cells", "phantom/organs", "phantom/c"')


def test_ranks_are_shown_for_three_targets_and_not_for_two(swept, tmp_path):
    assert "mean rank" not in table(*swept[:2])[1]
    file, store, cells = changed(tmp_path, TARGETS)
    _, out = table(file, store, "--format", "markdown")
    assert "**knn auroc, mean rank over targets**" in out
    v_DM = np.array([
        [
            mean(
                dict(classification(*predicted(c).values(), TASK.get(d, "multi-class")))["auroc"]
                for c in cells
                if (c.target, c.encoder.method, c.label_fraction) == (d, m, 1)
            )
            for m in SKILL
        ]
        for d in (*N, "phantom/c")
    ])  # fmt: skip
    ranks = markdown(file, store)[-3:]
    assert [line[0] for line in ranks] == list(SKILL)
    assert [line[2].split()[0] for line in ranks] == [f"{r:.2f}" for r in stats.mean_ranks(v_DM)]
    p = stats.friedman(v_DM).p_permuted
    said = f"100%: 3 targets, Friedman (permuted ranks) {'p<0.001' if p < 1e-3 else f'p={p:.3f}'}"
    assert f"{said}, critical difference {stats.nemenyi(3, 3):.2f}" in out
    lost = next(c for c in cells if c.target == "phantom/c" and c.label_fraction == 1)
    for cell in cells:
        if (cell.encoder.method, cell.target, cell.label_fraction) == (
            lost.encoder.method, lost.target, 1.0
        ):  # fmt: skip
            store.delete(f"rows/{cell.id}.parquet")
    assert markdown(file, store)[-3][1:] == [ranks[0][1]]  # at 10 % alone all three are whole


def test_three_targets_without_ranks_say_why(tmp_path):
    three = (
        '["phantom/cells", "phantom/organs"]',
        '["phantom/cells", "phantom/organs", "phantom/c"]',
    )
    lines = ('method=["none", "simclr", "byol"]', 'method=["none", "simclr"]')
    file, store, cells = changed(tmp_path, three, lines)
    told = "note: no mean ranks of knn auroc: no three targets have numbers of all lines"
    assert told not in table(file, store)[1]
    for cell in cells:
        if (cell.encoder.method, cell.target) == ("simclr", "phantom/c"):
            store.delete(f"rows/{cell.id}.parquet")
    assert told in table(file, store)[1].replace("\n", " ")


def test_groups_of_ranks_have_letters_and_two_methods_have_wilcoxon():
    clear = intervals._ranked(np.tile([0.9, 0.8, 0.3, 0.2], (12, 1)))
    assert clear[0] == ["1.00 a", "2.00 ab", "3.00 bc", "4.00 c"]
    assert clear[1].startswith("Friedman (permuted ranks) p<0.001")
    assert len({intervals._letter(i) for i in range(99)}) == 99
    assert intervals._ranked(np.array([[2, 1], [4, 2], [6, 3]])) == (
        ["1.00", "2.00"],
        "Wilcoxon p=0.250",
    )


@pytest.mark.parametrize("metric", stats.METRICS)
@pytest.mark.parametrize("task", ["multi-class", "binary-class", "multi-label, binary-class"])
def test_every_task_has_intervals(tmp_path, monkeypatch, task, metric):
    monkeypatch.setitem(TASK, "phantom/cells", task)
    file, store, _ = changed(tmp_path, ('["phantom/cells", "phantom/organs"]', '"phantom/cells"'))
    lines = markdown(file, store, "--metric", metric)
    assert len([line for line in lines if "[" in line[-1]]) == 3 + 2


def test_too_few_resamples_for_so_many_comparisons_are_told_with_how_many_would_do(swept):
    assert "cannot give" not in table(*swept[:2], count=319)[1]
    _, out = table(*swept[:2], count=200)
    said = "note: 200 resamples cannot give a p of 8 below 0.05 after Holm: --bootstrap 320 can"
    assert said in " ".join(out.split())


def test_captions_say_what_the_brackets_and_marks_are(swept):
    for kind in ("terminal", "markdown", "latex"):
        _, out = table(*swept[:2], "--format", kind)
        text = " ".join(out.split())
        for said in (
            "[95 % interval of it on other test images, the encoders as they are: 60 resamples",
            "† not distinguishable from the best of its column on this target",
            "two-sided, after Holm over the 8 of this table, and of test images, not of seeds",
        ):
            assert said in text, kind
    assert r"] $^\dagger$ & " in out


def test_shots_are_columns_too(tmp_path):
    file, store, _ = changed(tmp_path, ("label_fraction=[0.1, 1.0]", "label_fraction=1.0, shots=5"))
    lines = markdown(file, store)
    assert lines[0] == ["target", "method", "100%", "5-shot"]
    assert all("[" in entry for line in lines[2:8] for entry in line[2:])


def test_without_the_option_a_table_is_as_it_was(swept):
    file, store, cells = swept
    done = CliRunner().invoke(app, ["table", file, "--store", str(store.root)])
    assert "[" not in done.output
    rows = results.table(store, cells).to_pylist()
    (plain,), (with_them, *_) = tables.summaries(rows), intervals.summaries(
        rows, "auroc", by_id(store, cells), 50
    )[0]  # fmt: skip
    for line, other in zip(plain.rows, with_them.rows, strict=True):
        assert [entry.partition(" [")[0] for entry in other] == line


def test_a_narrow_terminal_has_intervals_on_lines_of_their_own(swept):
    from io import StringIO

    from rich.console import Console

    from medssl.cli import _grid

    _, store, cells = swept
    rows = results.table(store, cells).to_pylist()
    found, _ = intervals.summaries(rows, "auroc", by_id(store, cells), 50)
    for one, width in ((found[0], 70), (found[1], 80)):
        screen = Console(file=StringIO(), width=width)
        screen.print(_grid(one, width))
        out = screen.file.getvalue()
        for line in one.rows:
            for entry in line[2:]:
                number, _, interval = entry.partition(" [")
                assert number in out
                assert "[" + interval in out


def test_no_torch_is_imported(swept):
    file, store, _ = swept
    code = (
        "import sys; from typer.testing import CliRunner; from medssl.cli import app; "
        f"r = CliRunner().invoke(app, ['table', {file!r}, '--store', {str(store.root)!r}, "
        "'--bootstrap', '50']); assert r.exit_code == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
