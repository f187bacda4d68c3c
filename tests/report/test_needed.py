"""Labels needed are where the curve crosses the baseline; the interval is a slow version's."""

import numpy as np
import pytest
from typer.testing import CliRunner

from medssl import plan, results, stats
from medssl.cli import app
from medssl.report import needed as report
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr"], dataset="phantom/cells", backbone="vit/tiny-14",
        image_size=28, epochs=1, eval="knn", label_fraction=[0.01, 0.1, 1.0],
    )
"""
N, COUNT = 100, 60  # negatives of which so many are below all positives; resamples
T_NK = np.eye(2)[(np.arange(120) >= N).astype(int)]


def low(cell, value: float) -> np.ndarray:
    """Which negatives are below the positives: those of a lower AUROC are among a higher one's."""
    return np.arange(N) < round(value * N)


def fill(store: Store, cells, curves, low=low, labelled=None) -> None:
    """`curves`: method -> AUROC by fraction, or a function of the cell."""
    for cell in cells:
        of = curves[cell.encoder.method]
        value = of(cell) if callable(of) else of[cell.label_fraction]
        s_N = np.full(120, 0.5)
        s_N[:N] = np.where(low(cell, value), 0.25, 0.75)
        kept = {"scores": np.float32([1 - s_N, s_N]).T, "target": np.uint8(T_NK)}
        about = {"task": "binary-class", "labelled": (labelled or {}).get(cell.label_fraction)}
        results.save(store, cell, {"auroc": value, "accuracy": 0.5, "ece": 0.5}, kept, about)


def curve(*values: float) -> dict[float, float]:
    return dict(zip((0.01, 0.1, 1.0), values, strict=True))


def made(tmp_path, curves, *changes: tuple[str, str], **named):
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file, store = tmp_path / "sweep.py", Store(tmp_path / "kept")
    file.write_text(text)
    cells = plan.load(file).cells()
    fill(store, cells, curves, **named)
    return file, store, cells


def needed(swept, *more: str) -> tuple[int, str]:
    file, store, _ = swept
    arguments = ["needed", str(file), "--store", str(store.root), "--bootstrap", str(COUNT)]
    done = CliRunner().invoke(app, [*arguments, "--format", "markdown", *more])
    return done.exit_code, done.output


def lines(swept, *more: str) -> list[list[str]]:
    code, out = needed(swept, *more)
    assert code == 0, out
    found = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    return [line for line in found if line[0] not in ("target", "---")]


def last(swept, *more: str) -> str:
    """Of the last line the labels needed, without the interval."""
    return lines(swept, *more)[-1][-1].partition(" [")[0]


NONE = curve(0.5, 0.6, 0.8)


@pytest.mark.parametrize(
    ("simclr", "expected"),
    [
        ((0.6, 0.7, 0.9), "32 %"),  # halfway from 10 to 100 in log10
        ((0.75, 0.85, 0.9), "3.2 %"),
        ((0.5, 0.6, 0.8), "100 %"),
        ((0.6, 0.8, 0.9), "10 %"),
        ((0.8, 0.85, 0.9), "<= 1 %"),
        ((0.9, 0.95, 0.96), "<= 1 %"),
        ((0.5, 0.7, 0.79), "not reached"),
        ((0.9, 0.7, 0.9), "32 %"),  # of two crossings the last
        ((0.7, 0.9, 0.7), "not reached"),
    ],
)
def test_labels_needed_are_where_the_curve_crosses_the_baseline(tmp_path, simclr, expected):
    swept = made(tmp_path, {"none": NONE, "simclr": curve(*simclr)})
    none, found = lines(swept)
    assert none[:4] == ["phantom/cells", "none", "0.800", "0.800"]
    assert found[:4] == ["phantom/cells", "simclr", "0.800", f"{simclr[2]:.3f}"]
    assert found[4].partition(" [")[0] == expected


def test_a_share_is_of_the_images_that_were_labelled(tmp_path):
    """Of 300 images of eleven classes 1 % and 3 % are the same eleven: none has a curve of two."""
    shares = ("label_fraction=[0.01, 0.1, 1.0]", "label_fraction=[0.01, 0.03, 0.1, 1.0]")
    values = {0.01: 0.6, 0.03: 0.6, 0.1: 0.7, 1.0: 0.8}
    better = {0.01: 0.85, 0.03: 0.85, 0.1: 0.9, 1.0: 0.9}
    count = {0.01: 11, 0.03: 11, 0.1: 30, 1.0: 300}
    swept = made(tmp_path, {"none": values, "simclr": better}, shares, labelled=count)
    assert last(swept).partition(" [")[0] == "<= 3.7 %"
    rising = {0.01: 0.7, 0.03: 0.7, 0.1: 0.9, 1.0: 0.9}
    swept = made(tmp_path, {"none": values, "simclr": rising}, shares, labelled=count)
    assert last(swept).partition(" [")[0] == "6.1 %"  # (11 * 30) ** 0.5 of 300


@pytest.mark.parametrize("unsaid", [0.01, 0.1, 1.0])
def test_where_any_row_does_not_say_what_was_labelled_shares_are_as_asked(tmp_path, unsaid):
    """A row of before among others: a share as it was asked for may lie below a smaller one."""
    more = {0.01: 20, 0.1: 24, 1.0: 120}
    said = {fraction: count for fraction, count in more.items() if fraction != unsaid}
    curves = {"none": NONE, "simclr": curve(0.6, 0.7, 0.9)}
    assert last(made(tmp_path, curves, labelled=said)) == "32 %"
    assert last(made(tmp_path, curves, labelled=more)) == "45 %"


def test_the_baselines_own_line_says_what_it_could_do_without(tmp_path):
    for values, expected in (((0.5, 0.6, 0.8), "100 %"), ((0.5, 0.8, 0.8), "10 %")):
        swept = made(tmp_path, {"none": curve(*values), "simclr": NONE})
        assert lines(swept)[0][4].partition(" [")[0] == expected
        assert "nothing but none" not in needed(swept)[1]
    for cell in swept[2]:
        if cell.encoder.method != "none":
            swept[1].delete(f"rows/{cell.id}.parquet")
    assert "note: nothing but none has been measured: no other line" in needed(swept)[1]


def test_a_curve_without_all_labels_was_not_reached_with_the_most_there_were(tmp_path):
    drop = "drop={'': lambda c: c.encoder.method == 'simclr' and c.label_fraction == 1.0},"
    eval = ('eval="knn",', f'eval="knn", {drop}')
    swept = made(tmp_path, {"none": NONE, "simclr": NONE}, eval)
    assert lines(swept)[1][3:] == ["-", "not reached with 10 % [not reached with 10 %, "
                                   "not reached with 10 %]"]  # fmt: skip
    fill(*swept[1:], {"none": NONE, "simclr": curve(0.75, 0.85, 0)})
    assert last(swept) == "3.2 %"


def slow(curve_FSR: np.ndarray, goal_R: np.ndarray, fractions: list[float]) -> list[float]:
    """Resample by resample, from the right; seeds averaged; infinite where not reached."""
    found = []
    for r, goal in enumerate(goal_R):
        x, y = np.log10(fractions), curve_FSR[:, :, r].mean(1)
        if y[-1] < goal:
            found.append(np.inf)
            continue
        i = len(x) - 1
        while i and y[i - 1] >= goal:
            i -= 1
        part = (goal - y[i - 1]) / (y[i] - y[i - 1]) if i else 0
        found.append(10 ** (x[i - 1] + part * (x[i] - x[i - 1])) if i else fractions[0])
    return found


def test_seeds_are_averaged_and_the_interval_is_of_paired_resamples(tmp_path):
    """Pretraining seeds on which simclr has other mistakes, and two subsets below all labels."""
    seeds = ('eval="knn",', 'eval="knn", seed=range(3), subset_seed=[0, 1],')
    turn = {0: 0, 1: 7, 2: 19}

    def simclr(cell) -> float:
        base = {0.01: 0.65, 0.1: 0.75, 1.0: 0.88}[cell.label_fraction]
        return round(base + 0.03 * cell.encoder.seed - 0.02 * cell.subset_seed, 2)

    def low_of(cell, value: float) -> np.ndarray:
        shift = turn[cell.encoder.seed] + 3 * (cell.encoder.method == "simclr")
        return np.roll(np.arange(N) < round(value * N), shift + 5 * cell.subset_seed)

    swept = made(tmp_path, {"none": NONE, "simclr": simclr}, seeds, low=low_of)
    c_NR = stats.resamples(len(T_NK), COUNT)[:N]

    def auroc(cell, value: float) -> np.ndarray:
        return low_of(cell, value) @ c_NR / c_NR.sum(0)

    curve_FSR, goal_SR = np.zeros((3, 3, 1 + COUNT)), np.zeros((3, 1 + COUNT))
    for cell in swept[2]:
        s, full = cell.encoder.seed, cell.label_fraction == 1
        if cell.encoder.method == "none" and full:
            goal_SR[s] += auroc(cell, NONE[1.0])
        if cell.encoder.method == "simclr":
            f = [0.01, 0.1, 1.0].index(cell.label_fraction)
            curve_FSR[f, s] += auroc(cell, simclr(cell)) / (1 if full else 2)
    f_R = slow(curve_FSR, goal_SR.mean(0), [0.01, 0.1, 1.0])
    seen = np.sort(f_R[1:])
    ends = [f_R[0], seen[1], seen[-2]]  # 2.5 % of 60 resamples

    def text(f: float) -> str:
        return "not reached" if f == np.inf else f"{float(f'{100 * f:.2g}'):g} %"

    value, from_, to = map(text, ends)
    assert from_ != value != to
    assert lines(swept)[1][4] == f"{value} [{from_}, {to}]"
    assert lines(swept)[1][3] == "0.910 ± 0.030"


def test_what_curve_and_baseline_have_in_common_is_in_no_interval(tmp_path):
    """With 10 % the same predictions as the baseline with all: whatever the images, 10 %."""
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.5, 0.8, 0.9)})
    assert lines(swept)[1][4] == "10 % [10 %, 10 %]"

    def other(cell, value: float) -> np.ndarray:
        return low(cell, value)[:: -1 if cell.encoder.method == "simclr" else 1]

    fill(*swept[1:], {"none": NONE, "simclr": curve(0.5, 0.8, 0.9)}, low=other)
    found = lines(swept)[1][4]
    assert found.startswith("10 % [")
    assert found != "10 % [10 %, 10 %]"


def test_an_end_of_the_interval_may_be_not_reached_and_the_other_the_smallest(tmp_path):
    def other(cell, value: float) -> np.ndarray:
        return low(cell, value)[:: -1 if cell.encoder.method == "simclr" else 1]

    curves = {"none": NONE, "simclr": curve(0.79, 0.8, 0.81)}
    assert lines(made(tmp_path, curves, low=other))[1][4] == "10 % [<= 1 %, not reached]"


def test_resamples_are_as_many_as_asked(tmp_path):
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.6, 0.7, 0.9)})
    more, fewer = (lines(swept, "--bootstrap", count)[1][4] for count in ("400", "5"))
    assert more != fewer
    assert "5 resamples" in needed(swept, "--bootstrap", "5")[1]


def test_a_baseline_has_the_target_and_the_backbone_of_its_line(tmp_path):
    def better_on_7(cell) -> float:
        lift = 0.1 * (cell.encoder.backbone == "vit/tiny-7") + 0.05 * cell.target.endswith("ans")
        return round(NONE[cell.label_fraction] + lift, 2)

    two = ('backbone="vit/tiny-14"', 'backbone=["vit/tiny-14", "vit/tiny-7"]')
    sets = ("epochs=1", 'epochs=1, target=["same", "phantom/organs"]')
    swept = made(tmp_path, {"none": better_on_7, "simclr": curve(0.6, 0.7, 0.9)}, two, sets)
    found = [line for line in lines(swept) if "simclr" in line]
    assert [(line[0].rpartition("/")[2], *line[-3:-1]) for line in found] == [
        ("cells", "0.800", "0.900"),
        ("cells", "0.900", "0.900"),
        ("organs", "0.850", "0.900"),
        ("organs", "0.950", "0.900"),
    ]
    needs = [line[-1].partition(" [")[0] for line in found]
    assert needs == ["32 %", "100 %", "56 %", "not reached"]


def test_a_baseline_learned_from_the_same_set_whenever_it_was_measured(tmp_path):
    """Judged on B: what learned B's labels, and what learned A's; some rows know no source."""
    a, b = (f"medmnist/organ{plane}mnist" for plane in "ac")
    sets = ("phantom/cells", a), ("epochs=1", f'epochs=1, target={b!r}, source=["same", {a!r}]')

    def of(cell) -> float:
        shift = 0.2 * (cell.source != cell.target) * (cell.encoder.method == "none")
        return round(NONE[cell.label_fraction] - shift, 2)

    swept = made(tmp_path, {"none": of, "simclr": of}, *sets)
    assert [(line[1], line[-3], line[-1].partition(" [")[0]) for line in lines(swept)[2:]] == [
        ("same", "0.800", "100 %"),
        (a, "0.600", "10 %"),
    ]
    _, store, cells = swept
    rows = results.table(store, cells).to_pylist()
    for row in rows:  # of a store of before
        if row["method"] == "none" and row["source"] == row["target"]:
            row["source"] = None
    by_id = {cell.id: cell for cell in cells}
    (found,), notes = report.summaries(
        rows, "auroc", lambda name: results.predictions(store, by_id[name]), COUNT
    )
    assert (len(found.rows), notes) == (4, [])


def test_none_is_the_baseline_of_every_pretraining_set(tmp_path):
    """It has seen no set; another method is a baseline of its own set alone."""
    two = ('"phantom/cells"', '["phantom/cells", "phantom/organs"], target="phantom/xray"')
    method = ('"simclr"', '"simclr", "byol"')
    curves = {"none": NONE, "simclr": curve(0.6, 0.7, 0.9), "byol": NONE}
    swept = made(tmp_path, curves, two, method)
    found = [(line[1], line[2], line[-1].partition(" [")[0]) for line in lines(swept)]
    sets = "phantom/cells", "phantom/organs"
    assert found == [
        ("-", "none", "100 %"),
        *((name, "simclr", "32 %") for name in sets),
        *((name, "byol", "100 %") for name in sets),
    ]
    found = [line[1:3] for line in lines(swept, "--against", "simclr")]
    assert found == [[name, method] for method in ("simclr", "byol") for name in sets]


def test_another_method_may_be_the_baseline(tmp_path):
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.6, 0.7, 0.75)})
    none, simclr = lines(swept, "--against", "simclr")
    assert (none[2], none[4].partition(" [")[0]) == ("0.750", "56 %")
    assert simclr[4].partition(" [")[0] == "100 %"
    assert "simclr 100%" in needed(swept, "--against", "simclr")[1]


def test_of_several_baselines_none_is_chosen(tmp_path):
    more = ('"simclr"', '"simclr", ("simclr", {"temperature": 0.5}), "byol"')
    curves = {"none": NONE, "simclr": curve(0.6, 0.7, 0.75), "byol": NONE}
    swept = made(tmp_path, curves, more)
    assert [line[1] for line in lines(swept, "--against", "simclr")] == ["simclr", "simclr"]
    out = needed(swept, "--against", "simclr")[1].replace("\\", "")
    told = 'has no line, or several, with all labels: it needs one, of method="simclr"'
    assert told in out
    assert [line[1] for line in lines(swept)] == ["none", "simclr", "simclr", "byol"]


TWO = ('eval="knn"', 'eval=["knn", "linear_probe"]')


def test_an_evaluation_is_compared_with_itself_and_may_be_asked_for_alone(tmp_path):
    def worse_probe(cell) -> float:
        return round(NONE[cell.label_fraction] - 0.1 * (cell.eval == "linear_probe"), 2)

    swept = made(tmp_path, {"none": worse_probe, "simclr": curve(0.6, 0.7, 0.9)}, TWO)
    assert [line[-1].partition(" [")[0] for line in lines(swept)[1::2]] == ["32 %", "10 %"]
    _, out = needed(swept, "--eval", "linear_probe")
    assert "linear_probe auroc, labels needed to reach none" in out
    assert "knn" not in out
    assert last(swept, "--eval", "linear_probe") == "10 %"


def test_shots_are_no_share_of_the_labels(tmp_path):
    changes = ("label_fraction=[0.01, 0.1, 1.0]", "label_fraction=[0.01, 0.1, 1.0], shots=[1, 5]")

    def of(cell) -> float:
        return 0.95 if cell.shots else NONE[cell.label_fraction]

    swept = made(tmp_path, {"none": of, "simclr": of}, changes)
    assert last(swept) == "100 %"
    assert len(lines(swept)[0]) == 5
    few = ("label_fraction=[0.01, 0.1, 1.0]", "label_fraction=1.0, shots=[1, 5]")
    code, out = needed(made(tmp_path, {"none": of, "simclr": of}, few))
    assert code == 2
    assert "fewer than two shares of the labels: it needs label_fraction=[0.01, 0.1" in out


def test_a_line_without_a_curve_or_a_baseline_is_a_note_with_its_remedy(tmp_path):
    drop = (
        "drop={'': lambda c: c.encoder.backbone == 'vit/tiny-7' and c.encoder.method == 'none' and "
        "c.label_fraction == 1 or c.encoder.backbone == 'vit/tiny-16' and c.label_fraction < 1},"
    )
    eval = ('eval="knn",', f'eval="knn", {drop}')
    three = ('backbone="vit/tiny-14"', 'backbone=["vit/tiny-14", "vit/tiny-7", "vit/tiny-16"]')
    swept = made(tmp_path, {"none": NONE, "simclr": NONE}, eval, three)
    assert [line[1:3] for line in lines(swept)] == [
        ["vit/tiny-14", "none"],
        ["vit/tiny-14", "simclr"],
    ]
    out = needed(swept)[1].replace("\\", "")
    assert (
        "note: no labels needed where none of the same target, backbone, init, "
        'image_size has no line, or several, with all labels: it needs one, of method="none" and '
        "label_fraction=1.0 (phantom/cells, vit/tiny-7, none and 1 more)"
    ) in out
    assert (
        "note: no labels needed where a line has fewer than two shares of the labels: it needs "
        "label_fraction=[0.01, 0.1, 1.0], or others (phantom/cells, vit/tiny-16, simclr)"
    ) in out


def test_without_predictions_there_is_a_number_and_no_interval(tmp_path):
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.6, 0.7, 0.9)})
    lost = next(c for c in swept[2] if c.encoder.method == "simclr" and c.label_fraction == 0.1)
    swept[1].delete(f"predictions/{lost.id}.parquet")
    assert [line[4] for line in lines(swept)] == ["100 % [100 %, 100 %]", "32 %"]
    told = "note: no interval where predictions are missing or cannot be read (1 cell: "
    assert told in needed(swept)[1]


def test_other_test_images_are_not_paired(tmp_path):
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.6, 0.7, 0.9)})
    for cell in swept[2]:
        if cell.encoder.method == "simclr":
            kept = results.predictions(swept[1], cell)
            turned = {name: array[::-1] for name, array in kept.items()}
            value = curve(0.6, 0.7, 0.9)[cell.label_fraction]
            results.save(swept[1], cell, {"auroc": value}, turned, {"task": "binary-class"})
    assert lines(swept)[1][4] == "32 %"
    told = "no interval where a line and its baseline have other test images (phantom/cells, simclr"
    assert told in needed(swept)[1]


def test_a_curve_of_fewer_seeds_says_so(tmp_path):
    seeds = ('eval="knn",', 'eval="knn", seed=range(3),')
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.6, 0.7, 0.9)}, seeds)
    assert "(n=" not in needed(swept)[1]
    left = next(c for c in swept[2] if c.encoder.method == "simclr" and c.label_fraction == 0.1)
    swept[1].delete(f"rows/{left.id}.parquet")
    assert [line[4].endswith(" (n=2)") for line in lines(swept)] == [False, True]
    assert "1 of 18 cells have no result yet" in needed(swept)[1]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--metric", "aurok"], "no metric 'aurok' in this sweep: choose from accuracy, auroc"),
        (["--metric", "ece"], "no intervals of 'ece': kept predictions of test images give auroc"),
        (["--against", "dino"], "no 'dino' to compare with: choose from none, simclr"),
        (["--eval", "finetun"], "no 'finetun' in this sweep: choose from knn, linear_probe"),
        (["--format", "csv"], "--format csv: choose from terminal, markdown, latex"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, more, sentence):
    swept = made(tmp_path, {"none": NONE, "simclr": NONE}, TWO)
    code, out = needed(swept, *more)
    assert code == 2
    assert sentence in " ".join(out.split())


def test_nothing_measured_is_told(tmp_path):
    file, _, _ = made(tmp_path, {"none": NONE, "simclr": NONE})
    empty = ["needed", str(file), "--store", str(tmp_path / "empty")]
    assert CliRunner().invoke(app, empty).output == f"no results yet in {tmp_path}/empty\n"


@pytest.mark.parametrize("kind", ["terminal", "markdown", "latex"])
def test_the_caption_says_what_the_interval_is_of_and_how_a_crossing_is_found(tmp_path, kind):
    swept = made(tmp_path, {"none": NONE, "simclr": curve(0.79, 0.85, 0.9)})
    text = " ".join(needed(swept, "--format", kind)[1].split())
    for said in (
        "labels needed: the smallest share with which a line reaches none with all labels",
        "the score is a line in log10 of the share",
        "[95 % interval on other test images, the encoders and the labelled images as they are: 60",
    ):
        assert said in text
    assert "the smallest measured, fewer may do" in text
    assert "not reached" not in text
    some = last(made(tmp_path, {"none": NONE, "simclr": curve(0.7, 0.75, 0.79)}))
    assert some.startswith("not reached")
    text = " ".join(needed(swept, "--format", kind)[1].split())
    assert "not reached: nor with the most that were measured" in text
    assert "the smallest measured" not in text
