"""Published numbers beside ours: whose, at which size, in which unit, and whether inside."""

import numpy as np
import pytest
from typer.testing import CliRunner

from medssl import plan, results
from medssl.cli import app
from medssl.metrics import classification
from medssl.report import published
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method="none", dataset=["medmnist/breastmnist", "medmnist/retinamnist"],
        backbone="vit/tiny-14", image_size=28, eval="knn", label_fraction=[0.1, 1.0], seed=[0, 1],
    )
"""
LONG = """dataset,model,auc,acc
breastmnist,resnet18_28,0.7,0.863
breastmnist,resnet50_28,0.857,0.812
pathmnist,resnet18_28,0.983,0.907
"""
WIDE = """dataset,scheme,model,acc28,acc64,auc28,auc64
retinamnist,LP,DINO,55.0,56.0,,77.2
retinamnist,kNN,DINO,52.5,53.5,,
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    file = folder / "sweep.py"
    file.write_text(FILE)
    cells, store = plan.load(file).cells(), Store(folder / "kept")
    for cell in cells:
        rng = np.random.default_rng(cell.encoder.seed)
        t_NK = np.eye(2)[np.arange(200) % 2]
        score_N = np.clip(0.5 + 0.15 * rng.normal(size=200) + 0.1 * (t_NK[:, 1] - 0.5), 0, 1)
        kept = {"scores": np.float32([1 - score_N, score_N]).T, "target": np.uint8(t_NK)}
        metrics = dict(classification(kept["scores"], kept["target"], "binary-class"))
        results.save(store, cell, metrics, kept, {"task": "binary-class"})
    return file, store, cells


def compared(swept, tmp_path, text: str, *options: str) -> tuple[int, list[list[str]], str]:
    file, store, _ = swept
    (tmp_path / "theirs.csv").write_text(text)
    command = ["compare", str(file), "--to", str(tmp_path / "theirs.csv"), "--format", "markdown"]
    done = CliRunner().invoke(app, [*command, "--store", str(store.root), *options])
    lines = [line.strip("| ").split(" | ") for line in done.output.splitlines() if "|" in line]
    return done.exit_code, [line for line in lines if line[0].startswith("medmnist")], done.output


def test_one_evaluation_can_be_compared_alone(tmp_path, swept):
    file = tmp_path / "both.py"
    file.write_text(FILE.replace('eval="knn"', 'eval=["knn", "finetune"]'))
    cells = plan.load(file).cells()
    kept = Store(tmp_path / "kept")
    for cell in cells:
        value = {"knn": 0.25, "finetune": 0.75}[cell.eval]
        results.save(kept, cell, {"auroc": value, "accuracy": value}, {}, {"task": "binary-class"})
    both = file, kept, cells
    _, lines, _ = compared(both, tmp_path, LONG)
    assert {line[4] for line in lines} == {"0.250 ± 0.000", "0.750 ± 0.000"}
    code, lines, out = compared(both, tmp_path, LONG, "--eval", "finetune")
    assert (code, {line[4] for line in lines}) == (0, {"0.750 ± 0.000"})
    assert "knn" not in out
    code, _, out = compared(both, tmp_path, LONG, "--eval", "fine_tune")
    assert code == 2
    assert "no 'fine_tune' in this sweep: choose from finetune, knn" in " ".join(out.split())
    asked = ["table", str(file), "--store", str(kept.root), "--format", "markdown", "--eval"]
    done = CliRunner().invoke(app, [*asked, "knn"])
    assert ("0.250" in done.output, "0.750" in done.output) == (True, False)
    assert CliRunner().invoke(app, [*asked, "fine_tune"]).exit_code == 2


def test_every_column_has_its_unit_and_a_dash_is_no_number(tmp_path):
    file = tmp_path / "mixed.csv"
    file.write_text("dataset,auc,acc\na,0.9,86.3\nb,-,81.2\nc,n/a,1.0\n")
    read = [(one.dataset, one.metric, one.value) for one in published.read(file)]
    assert read == [
        ("a", "auroc", 0.9),
        ("a", "accuracy", pytest.approx(0.863)),
        ("b", "accuracy", pytest.approx(0.812)),
        ("c", "accuracy", pytest.approx(0.01)),
    ]
    file.write_text("dataset,auc\na,0.9\nb,0.9*\n")
    with pytest.raises(ValueError, match=r"mixed.csv, line 3: auc is '0.9\*', no number: write -"):
        published.read(file)


def test_a_set_has_either_name_and_what_is_not_here_is_noted(swept, tmp_path):
    text = LONG.replace("breastmnist,resnet18", "medmnist/breastmnist,resnet18")
    _, lines, out = compared(swept, tmp_path, text)
    assert len(lines) == 4
    assert "note: in the file and not measured here: pathmnist" in out
    with pytest.raises(ValueError, match=r"no file .*no.csv: name a CSV"):
        published.read(tmp_path / "no.csv")


def test_a_number_of_fewer_seeds_says_so(tmp_path, swept):
    file, _, cells = swept
    kept = Store(tmp_path / "kept")
    for cell in cells:
        if (cell.target, cell.encoder.seed) != ("medmnist/breastmnist", 1):
            results.save(kept, cell, {"auroc": 0.5, "accuracy": 0.5}, {}, {"task": "binary-class"})
    text = "dataset,model,acc\nbreastmnist,x,0.7\nretinamnist,x,0.7\n"
    _, lines, _ = compared((file, kept, cells), tmp_path, text)
    assert [line[4] for line in lines] == ["0.500 (n=1)", "0.500 ± 0.000"]


def test_a_line_for_each_published_number_of_the_set_with_all_labels(swept, tmp_path):
    code, lines, out = compared(swept, tmp_path, LONG)
    assert code == 0, out
    assert [(line[2], line[3]) for line in lines] == [
        ("resnet18_28", "0.700"),
        ("resnet50_28", "0.857"),
        ("resnet18_28", "0.863"),
        ("resnet50_28", "0.812"),
    ]
    _, store, cells = swept
    asked = "medmnist/breastmnist", "auroc", 1.0
    ours = [
        row["value"]
        for row in results.table(store, cells).to_pylist()
        if (row["target"], row["metric"], row["label_fraction"]) == asked
    ]
    assert len(ours) == 2
    number, _, inside = lines[0][4].partition(" [")
    low, high = map(float, inside.rstrip("]").split(", "))
    assert number == f"{np.mean(ours):.3f} ± {np.std(ours, ddof=1):.3f}"
    assert low < np.mean(ours) < high
    assert float(lines[0][5]) == pytest.approx(np.mean(ours) - 0.7, abs=0.0006)
    assert lines[0][6] == ("yes" if low <= 0.7 <= high else "no")
    assert lines[1][6] == "no"


def test_an_auroc_that_is_of_no_classifier_is_not_beside_a_published_one(swept, tmp_path):
    file, store = tmp_path / "both.py", Store(tmp_path / "kept")
    strangers = '("ood", {"far": "medmnist/pneumoniamnist"})'
    file.write_text(FILE.replace('eval="knn"', f'eval=["knn", {strangers}]'))
    cells = plan.load(file).cells()
    for cell in cells:
        values = {"knn": {"auroc": 0.25, "accuracy": 0.5}, "ood": {"auroc": 0.75}}[cell.eval]
        results.save(store, cell, values, {}, {"task": "binary-class"})
    code, lines, out = compared((file, store, cells), tmp_path, LONG)
    assert code == 0, out
    assert {line[4] for line in lines} == {"0.250 ± 0.000", "0.500 ± 0.000"}
    assert "ood" not in out
    code, _, out = compared((file, store, cells), tmp_path, LONG, "--eval", "ood")
    assert code == 2
    assert "nothing to compare" in out


def test_one_model_alone_and_percents_at_the_size_of_the_sweep(swept, tmp_path):
    _, lines, _ = compared(swept, tmp_path, LONG, "--model", "resnet50_28")
    assert {line[2] for line in lines} == {"resnet50_28"}
    _, (line,), _ = compared(swept, tmp_path, WIDE, "--model", "kNN")
    assert line[:4] == ["medmnist/retinamnist", "none", "kNN DINO", "0.525"]
    found = published.read(tmp_path / "theirs.csv")
    assert [(one.metric, one.size, one.value) for one in found] == [
        ("accuracy", 28, 0.55),
        ("accuracy", 64, 0.56),
        ("auroc", 64, pytest.approx(0.772)),
        ("accuracy", 28, 0.525),
        ("accuracy", 64, 0.535),
    ]


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("", [], "needs a column dataset, and one or more of auc"),
        ("set,auc\nx,1", [], "it has set, auc"),
        (LONG, ["--model", "vit"], "has no 'vit': choose from resnet18_28, resnet50_28"),
        ("dataset,auc\npathmnist,0.9", [], "nothing to compare: the file is of pathmnist; the swe"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(swept, tmp_path, text, options, sentence):
    code, _, out = compared(swept, tmp_path, text, *options)
    assert code == 2
    assert sentence in " ".join(out.split())


def test_without_predictions_there_is_a_difference_and_no_interval(swept, tmp_path):
    _, store, cells = swept
    cell = next(c for c in cells if c.target.endswith("retinamnist") and c.label_fraction == 1)
    name = f"predictions/{cell.id}.parquet"
    kept = store.read(name)
    store.delete(name)
    _, (line,), out = compared(swept, tmp_path, WIDE, "--model", "kNN")
    store.write(name, kept)
    assert "[" not in line[4]
    assert line[6] == "-"
    assert "no interval where predictions are missing" in out
