"""Sources, and targets across: the same numbers, placed where they can be compared."""

import pytest
from typer.testing import CliRunner

from medssl import plan, results, tracking
from medssl.cli import app
from medssl.report import figures, published, tables
from medssl.store import Store

A, C, S = (f"medmnist/organ{plane}mnist" for plane in "acs")
FILE = f"""
from medssl import Sweep

A, C, S = {A!r}, {C!r}, {S!r}

def sweep():
    return Sweep(
        name="t", method=["none", "simclr"], dataset=[A, C], backbone="vit/tiny-14", image_size=28,
        epochs=1, eval="knn", label_fraction=[0.1, 1.0], target=[A, C, S], source=["same", A],
        drop={{"own labels alone of other encoders": lambda cell: (
            cell.source != cell.target and cell.encoder.dataset == C
            and cell.encoder.method == "simclr"
        )}},
    )
"""


def number(cell) -> float:
    """Of which every part can be read off: encoder, method, target, source, labels."""
    places = [A, C, S]
    at = places.index
    found = 0.1 * at(cell.encoder.dataset) + 0.4 * (cell.encoder.method == "simclr")
    found += 0.01 * at(cell.target) + 0.05 * (cell.source != cell.target)
    return found + 0.005 * (cell.label_fraction == 1)


@pytest.fixture
def swept(tmp_path):
    file, store = tmp_path / "t.py", Store(tmp_path / "store")
    file.write_text(FILE)
    cells = plan.load(file).cells()
    for cell in cells:
        metrics = {"auroc": number(cell), "accuracy": 0.5}
        results.save(store, cell, metrics, {}, {"task": "multi-class"})
    return file, store, cells


def table(file, store, *more: str) -> list[list[str]]:
    arguments = ["table", str(file), "--store", str(store.root), "--format", "markdown", *more]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return [line.strip("| ").split(" | ") for line in done.output.splitlines() if line[:2] == "| "]


def test_what_learned_elsewhere_has_a_line_of_its_own(swept):
    _, store, cells = swept
    (found,) = tables.summaries(results.table(store, cells).to_pylist())
    assert found.header == ["target", "source", "dataset", "method", "10%", "100%"]
    assert [C, "same", A, "simclr", "0.410", "0.415"] in found.rows
    assert [C, A, A, "simclr", "0.460", "0.465"] in found.rows
    assert [C, "same", "-", "none", "0.110", "0.115"] in found.rows  # which has seen no set
    assert len(found.rows) == (2 * 3 + 2) + (3 + 2)


def test_without_sources_a_table_has_no_such_column(swept):
    _, store, cells = swept
    rows = results.table(store, cells).to_pylist()
    own = [row for row in rows if row["source"] == row["target"]]
    old = [{**row, "source": None} for row in own]  # of a store of before
    assert tables.summaries(own)[0].header == ["target", "dataset", "method", "10%", "100%"]
    assert tables.summaries(old) == tables.summaries(own)


def test_a_matrix_has_targets_across_and_marks_what_was_pretrained_on(swept):
    file, store, _ = swept
    lines = table(file, store, "--across", "target")
    header = ["method", "source", "dataset", "organamnist", "organcmnist", "organsmnist"]
    assert lines.count(header) == 2  # of 10 % and of 100 %
    few = lines[: lines.index(header, 1)]
    assert few[2:] == [  # method by method
        ["none", "same", "-", "0.000", "0.110", "0.220"],
        ["none", A, "-", "-", "0.060", "0.070"],
        ["simclr", "same", A, "0.400 *", "0.410", "0.420"],
        ["simclr", "same", C, "0.500", "0.510 *", "0.520"],
        ["simclr", A, A, "-", "0.460", "0.470"],
    ]


def test_a_published_number_is_of_the_sets_own_labels(swept):
    _, store, cells = swept
    theirs = [published.Published("organcmnist", "them", "auroc", 28, 0.9)]
    ((found,), _) = published.compare(results.table(store, cells).to_pylist(), theirs, lambda _: {})
    assert {row[found.header.index("source")] for row in found.rows} == {"same"}


def test_mlflow_and_the_figure_tell_sources_apart(swept, monkeypatch):
    _, store, cells = swept
    of_one = [c for c in cells if (c.encoder.method, c.encoder.dataset) == ("simclr", A)]
    assert len({tracking._metric(cell, "auroc") for cell in of_one}) == len(of_one)
    names, real = [], figures._png

    def png(draw, data):
        from matplotlib.figure import Figure

        axes = Figure().subplots()
        draw(axes, data)
        names.extend(text.get_text() for text in axes.get_legend().get_texts())
        return real(draw, data)

    monkeypatch.setattr(figures, "_png", png)
    list(figures.of_encoder([], results.table(store, of_one).to_pylist()))
    assert {"knn", f"knn on {C}", f"knn on {C} learned on {A}"} <= set(names)
