"""What is chosen depends on validation scores alone, and on nothing that happened on the way."""

import functools
import json
import random
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import safetensors.torch
import torch
from runs import Runs
from typer.testing import CliRunner

from medssl import Search, Sweep, _layouts, cost, plan, results, search, status, trial, watch
from medssl import sweep as engine
from medssl.cli import app
from medssl.report import tables
from medssl.spec import SEARCHED, Shard, parent
from medssl.store import Store

HALVING = Search(how="halving", epochs=100)
SWEEP = Sweep(
    name="t",
    method="simclr",
    dataset="medmnist/breastmnist",
    backbone="vit/tiny-14",
    image_size=28,
    seed=[0, 1],
    eval="knn",
    label_fraction=1.0,
    search=HALVING,
)


def spec(**changes):
    return replace(SWEEP, **changes).cells()[0].encoder


def measure(store, cell, value, metric="val_auroc"):
    metrics = {metric: value, "auroc": 1 - value}  # what is best on test is worst on validation
    results.save(store, cell, metrics, {"scores": np.zeros((2, 2), np.float32)}, {})


def score(cell) -> float:
    """Best at a rate of 0.003 and a decay of 1e-4."""
    rate, decay = cell.encoder.learning_rate, cell.encoder.weight_decay
    return 0.9 - 0.1 * abs(np.log10(rate / 0.003)) - 0.01 * abs(np.log10(decay / 1e-4))


def finished(store, one, scored=score, order=iter) -> search.Searches:
    """The search after all its rungs have been measured, each in the order that `order` makes."""
    searches = search.Searches(store)
    while missing := searches.missing(one):
        for cell in order(missing):
            measure(store, cell, scored(cell))
        searches.look()
    return searches


@pytest.mark.parametrize(
    ("points", "rungs"),
    [
        (12, [(12, 11), (4, 33), (2, 66)]),
        (27, [(27, 11), (9, 33), (3, 100)]),
        (2, [(2, 33)]),
        (3, [(3, 33)]),
        (4, [(4, 16), (2, 33)]),
    ],
)
def test_halving_takes_a_third_of_the_grids_epochs_at_most(points, rungs):
    rates = [0.001 * (i + 1) for i in range(points)]
    one = spec(search=replace(HALVING, learning_rate=rates, weight_decay=0.0))
    assert search.rungs(one) == rungs
    assert 3 * sum(n * epochs for n, epochs in rungs) <= 100 * points
    assert search.rungs(spec(search=replace(one.search, how="grid"))) == [(points, 100)]


def test_the_papers_search_is_the_default():
    one = spec(search=Search())
    assert search.rungs(one) == [(12, 100)]  # a quarter of 400
    (rate, decay), *_ = one.search.points
    assert (rate, decay) == (0.3, 1e-3)
    (cell,) = search.cells(one, (0.03, 1e-5), 100)
    point = cell.encoder
    assert (point.learning_rate, point.weight_decay, point.epochs) == (0.03, 1e-5, 100)
    assert (cell.eval, cell.target, cell.label_fraction) == ("linear_probe", one.dataset, 1)
    assert point.search is None


@pytest.mark.parametrize("how", ["grid", "halving"])
def test_the_best_on_validation_is_chosen_for_every_seed(tmp_path, how):
    store, mine = Store(tmp_path), replace(SWEEP, search=replace(HALVING, how=how))
    first, second = (cell.encoder for cell in mine.cells())
    searches = finished(store, first)
    assert searches.chosen(first) == searches.chosen(second) == (0.003, 1e-4)
    assert searches.missing(second) == searches.later(second) == []
    assert {c.encoder.seed for of in searches.known(second) for c in of} == {0}


def _shuffled(dice, cells):
    return dice.sample(cells, len(cells))


def test_a_choice_does_not_depend_on_which_point_came_first(tmp_path):
    told = []
    for luck in range(5):
        shuffled = functools.partial(_shuffled, random.Random(luck))
        one = spec()
        found = finished(Store(tmp_path / str(luck)), one, lambda cell: 0.5, shuffled)
        assert found.chosen(one) == (0.3, 1e-3)  # all are equal: the grid's first
        told.append(search.told(found.standing(one)))
    assert all(each == told[0] for each in told)
    assert [line["rung"] for line in told[0]] == [1] * 12 + [2] * 4 + [3] * 2


def test_the_next_rung_is_the_best_third_once_all_are_measured(tmp_path):
    store, one = Store(tmp_path), spec()
    searches = search.Searches(store)
    cells = searches.missing(one)
    for cell in cells[:-1]:
        measure(store, cell, score(cell))
    searches.look()
    assert searches.missing(one) == cells[-1:]
    assert list(searches.so_far(one).values()) == list(map(score, cells[:-1]))
    later = searches.later(one)
    assert [(each.rung, each.place) for each in later] == [(1, place) for place in range(4)] + [
        (2, 0),
        (2, 1),
    ]
    with pytest.raises(OSError, match="1 points of the search for it are not measured, or this"):
        searches.of_later(later[0])
    measure(store, cells[-1], score(cells[-1]))
    searches.look()
    best = sorted(cells, key=score, reverse=True)[:4]
    asked = [replace(c, encoder=replace(c.encoder, epochs=33)) for c in best]
    assert searches.missing(one) == asked
    assert [searches.of_later(each) for each in later[:4]] == [[cell] for cell in asked]
    assert searches.later(one) == later[4:]


def test_what_diverges_is_the_worst_and_is_not_tried_again(tmp_path):
    store, one = Store(tmp_path), spec()
    searches = search.Searches(store)
    later = searches.later(one)
    for cell in searches.missing(one):
        if cell.encoder.learning_rate > 0.001:  # three points are left
            store.write(search.diverged(cell.encoder.id), b"not finite")
        else:
            measure(store, cell, score(cell))
    searches.look()
    assert {c.encoder.learning_rate for c in searches.missing(one)} == {0.0003}
    assert len(searches.missing(one)) == 3
    assert searches.of_later(later[3]) == []
    searches = finished(store, one)
    assert searches.chosen(one) == (0.0003, 1e-4)
    told = search.told(searches.standing(one))
    assert [line["score"] for line in told[3:12]] == [None] * 9
    json.dumps(told, allow_nan=False)


def test_without_a_score_nothing_is_chosen(tmp_path):
    store, one = Store(tmp_path), spec()
    with pytest.raises(OSError, match="12 points of the search for it are not measured"):
        search.Searches(store).chosen(one)
    with pytest.raises(ValueError, match="no point of the search for it has a val_auroc"):
        finished(store, one, lambda cell: float("nan")).chosen(one)


def test_of_a_union_the_mean_over_its_members_chooses(tmp_path):
    store, one = Store(tmp_path), spec(dataset="medmnist/breastmnist+pneumoniamnist")
    cells = search.Searches(store).missing(one)
    assert len(cells) == 24
    assert {c.target for c in cells} == {"medmnist/breastmnist", "medmnist/pneumoniamnist"}

    def scored(cell):  # by breast alone the first point would win, by pneumonia alone the last
        breast, place = (
            "breast" in cell.target,
            one.search.points.index((cell.encoder.learning_rate, cell.encoder.weight_decay)),
        )
        return {0: 1.0 * breast, 5: 0.7, 11: 1.0 * (not breast)}.get(place, 0.1)

    assert finished(store, one, scored).chosen(one) == one.search.points[5]


def test_a_torn_file_is_as_if_not_measured_and_set_aside(tmp_path):
    store, one = Store(tmp_path), spec(search=replace(HALVING, how="grid"))
    finished(store, one)
    cell = search.Searches(store).known(one)[0][0]
    store.write(f"rows/{cell.id}.parquet", b"torn")
    searches = search.Searches(store)
    assert searches.missing(one) == [cell]
    with pytest.raises(ValueError, match=f"{cell.id}.parquet .* cannot be read: run the sweep"):
        searches.chosen(one)  # which no waiting would mend
    assert search.set_aside_broken([one], store) == [f"rows/{cell.id}.parquet"]
    assert results.missing([cell], store) == [cell]
    assert finished(store, one).chosen(one) == (0.003, 1e-4)


def test_trials_wait_for_the_whole_rung_before(tmp_path):
    store, one = Store(tmp_path), spec()
    searches = search.Searches(store)
    waits = search.waits(one, searches)
    *second, third, fourth = searches.later(one)
    first = {c.encoder.id for c in searches.missing(one)}
    assert [waits[each.id] for each in second] == [first] * 4
    assert waits[third.id] == waits[fourth.id] == {each.id for each in second}
    assert waits[search.base(one).id] == {third.id, fourth.id}


def test_a_plan_counts_the_points_and_what_they_take(tmp_path):
    store = Store(tmp_path)
    found = plan.make(replace(SWEEP, dataset="phantom/cells"), store, None)
    assert found.problems == found.absent == []
    assert len(found.ahead) == 18
    assert not {"learning_rate", "weight_decay"} & plan.axes(found.cells).keys()
    assert sum(each.epochs for each in found.ahead) == 12 * 11 + 4 * 33 + 2 * 66
    assert found.to_pretrain(store) == 2 + 18
    finished(store, found.cells[0].encoder)
    assert plan.make(found.sweep, store, None).ahead == []


def test_what_is_made_needs_no_search(tmp_path):
    store = Store(tmp_path)
    for cell in SWEEP.cells():
        store.write(f"encoders/{cell.encoder.id}.safetensors", b"")
    assert plan.make(SWEEP, store, None).points == []


def test_status_shows_points_beside_the_sweeps_own_cells(tmp_path):
    store, one = Store(tmp_path), spec()
    cells = SWEEP.cells()
    read = status.Reader(cells, store).read
    assert "points of searches 0/18; cells 0/2" in watch.line(read())
    first = search.Searches(store).missing(one)
    measure(store, first[0], 0.5)
    store.write(search.diverged(first[1].encoder.id), b"not finite")
    assert "points of searches 2/18, 1 diverged; cells 0/2" in watch.line(read())
    finished(store, one)
    assert "points of searches 18/18, 1 diverged; cells 0/2" in watch.line(read())


def test_a_row_that_is_seen_late_is_waited_for(tmp_path, monkeypatch):
    """As on a shared folder, by the node that goes on."""
    store, one = Store(tmp_path), spec()
    cells = search.Searches(store).missing(one)
    for cell in cells[1:]:
        measure(store, cell, score(cell))
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            measure(store, cells[0], score(cells[0]))

    monkeypatch.setattr(search.time, "sleep", sleep)
    late = search.Searches(store, lag_s=60)
    assert late.of_later(search.Later(one, 1, 0))[0].encoder.learning_rate == 0.003
    assert len(waited) == 3


def test_a_point_may_be_an_encoder_of_the_sweep_itself(tmp_path):
    """Whose own cells are then counted as its own, and not as the point's."""
    store = Store(tmp_path)
    given = Search(epochs=100, learning_rate=[0.1, 0.01], weight_decay=0.0)
    own = {"learning_rate": 0.1, "weight_decay": 0.0, "epochs": 100, "warmup_epochs": 10}
    cells = replace(SWEEP, **own, search=[None, given], seed=0).cells()
    points = search.Searches(store).missing(cells[-1].encoder)
    assert cells[0].encoder == points[0].encoder
    for cell in [*cells, *points]:
        measure(store, cell, 0.5)
        store.write(f"encoders/{cell.encoder.id}.safetensors", b"-")
    found = status.read(cells, store)
    assert (found.cells_done, found.cells, found.states) == (2, 2, {"finished": 2})
    assert [t.spec for t in found.points] == [points[1].encoder]
    assert found.points[0].state == "finished"


def test_searches_that_share_their_first_points_share_the_next_ones(tmp_path):
    by = [replace(HALVING, metric=metric) for metric in ("val_auroc", "val_accuracy")]
    todo = {c.encoder.id: [c] for c in replace(SWEEP, search=by, seed=0).cells()}
    trials = engine._trials(todo, Store(tmp_path))
    one, two = (cells[0].encoder for cells in todo.values())
    searches = search.Searches(Store(tmp_path))
    first = {each.id for each in searches.later(one)}
    for later in searches.later(two):
        assert first <= trials.waits[later.id]  # their rows are there by then
    assert len(trials.work) == 2 + 12 + 2 * 6


def test_searches_that_choose_the_same_share_no_checkpoint():
    one, two = (replace(spec(), search=how) for how in (Search(), HALVING))
    names = {
        trial._unfinished(of, search.resolved(of, point))
        for of in (one, two)
        for point in ((0.03, 0.001), (0.3, 0.001))
    }
    assert len(names) == 4
    plain = search.resolved(one, (0.03, 0.001))
    assert trial._unfinished(plain, plain) == f"checkpoints/{plain.id}.pt"


def test_parts_of_a_sweep_share_no_search_and_no_supervised_init():
    inits = ["random", "supervised:medmnist/breastmnist"]
    grid = replace(SWEEP, method=["none", "simclr"], seed=list(range(8)), init=inits)
    by_init: dict[tuple[str, str], set[bool]] = {}
    for cell in grid.cells():
        of = cell.encoder
        group = ("", of.init) if parent(of) else (of.method, of.init)
        by_init.setdefault(group, set()).add(Shard(1, 2).holds(of))
    del by_init["none", "random"]  # which depend on nothing
    assert [len(found) for found in by_init.values()] == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"how": "luck"}, "it must be one of grid, halving"),
        ({"learning_rate": []}, "Search learning_rate is empty"),
        ({"learning_rate": [0.1, 0]}, "learning_rate=0"),
        ({"weight_decay": [-1]}, "weight_decay=-1"),
        ({"learning_rate": 0.1, "weight_decay": 0}, "Search has one point"),
        ({"by": "ood"}, "choose from linear_probe, sgd_probe, knn, finetune"),
        ({"by": ("knn", {"k": 3})}, "knn has no setting 'k'"),
        ({"metric": "auroc"}, "it must be one of val_auroc, val_accuracy, val_balanced_accuracy"),
    ],
)
def test_a_wrong_search_is_a_sentence(wrong, says):
    with pytest.raises(ValueError, match=says):
        Search(**wrong)


def test_a_rate_beside_a_search_is_refused():
    assert replace(SWEEP, learning_rate=np.array([3e-4])).cells()
    assert replace(SWEEP, learning_rate=np.array([0.1, 0.2]), search=None).cells()
    with pytest.raises(ValueError, match="learning_rate is chosen by the Search"):
        replace(SWEEP, learning_rate=[0.1, 0.2])
    both = replace(SWEEP, learning_rate=[0.1, 0.2], search=[None, HALVING])
    assert len({cell.encoder.id for cell in both.cells()}) == 6


def test_too_few_epochs_to_halve_are_refused(tmp_path):
    brief = replace(SWEEP, search=replace(HALVING, epochs=8), dataset="phantom/cells")
    (problem,) = plan.make(brief, Store(tmp_path), None).problems
    assert "give Search epochs=9 or more" in problem
    least = spec(search=replace(HALVING, epochs=9))
    assert search.rungs(least) == [(12, 1), (4, 3), (2, 6)]


def test_what_is_equal_is_one_search():
    assert Search(learning_rate=[0.1, 0.1, 1]).id == Search(learning_rate=(0.1, 1.0)).id
    assert Search(by="knn").id == Search(by=("knn", {})).id == replace(Search(by="knn")).id
    assert spec(search=Search(seed=1)).id != spec(search=Search()).id
    assert cost.UNKNOWN.encoder_s(spec()) is None


METHODS = "method=['none', SIMCLR], train_images=128, batch_size=64, learning_rate=3e-4"
RATES = "learning_rate=[1e30, 1e-2, 1e-3], weight_decay=[0.1, 0.01], epochs=6, by='knn'"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_sweep_searches_and_trains_what_was_chosen(tmp_path):
    """With points that diverge, which are not tried again, and are no failure of the sweep."""
    runs = Runs(tmp_path, f"{METHODS}, search=Search(how='halving', {RATES})")
    code, out = runs.run()
    assert code == 0, out
    store, made = runs.store, {c.encoder.seed: c.encoder for c in runs.cells if c.encoder.search}
    searches = search.Searches(store)
    chosen = searches.chosen(made[0])
    assert chosen == searches.chosen(made[1])
    assert "points of searches 8/8" in runs.run("status")[1]
    assert len(searches.diverged) == 2
    asked = {c.encoder.id for c in runs.cells}
    rows = [r for r in results.table(store).to_pylist() if r["encoder"] in asked]
    rows = [r for r in rows if r["method"] == "simclr"]
    assert {(r["learning_rate"], r["weight_decay"]) for r in rows} == {chosen}
    assert {r["search"] for r in rows} == {str(made[0].search)}
    about = _layouts.header(store.read(f"encoders/{made[1].id}.safetensors"))
    told = about["search"]
    assert told == search.told(searches.standing(made[1]))
    assert [line["score"] is None for line in told] == [False] * 4 + [True] * 2 + [False] * 2
    plain = search.resolved(made[1], chosen)
    named = f"learning_rate={plain.learning_rate}, weight_decay={plain.weight_decay}"
    named += ", train_images=128, batch_size=64"
    same = Runs(tmp_path / "same", f"method=SIMCLR, seed=1, {named}", store=str(store.root))
    same.run()
    ours, theirs = (
        safetensors.torch.load(store.read(f"encoders/{one.id}.safetensors"))
        for one in (made[1], plain)
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert "0 missing" in runs.run()[1]


FILE = """
from medssl import Search, Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr", "byol"], dataset="medmnist/breastmnist",
        backbone="vit/tiny-14", image_size=28, eval="knn", label_fraction=1.0, seed=[0, 1],
        search=[Search(epochs=100), Search(how="halving", epochs=100)],
    )
"""


@pytest.fixture
def searched(tmp_path):
    """A sweep of which the searches are done, and every cell measured."""
    store, file = Store(tmp_path / "store"), tmp_path / "t.py"
    file.write_text(FILE)
    cells = plan.load(file).cells()
    for one in search.asked([cell.encoder for cell in cells], ()):
        finished(store, one, lambda cell, method=one.method: score(cell) * (method == "simclr"))
    searches = search.Searches(store)
    for cell in cells:
        found = cell.encoder.search and searches.chosen(cell.encoder)
        chosen = dict(zip(SEARCHED, found, strict=True)) if found else {}
        about = chosen | {"task": "binary-class"}
        value = 0.5 + 0.1 * bool(found) + 0.01 * cell.encoder.seed
        results.save(store, cell, {"auroc": value}, {}, about)
    return file, store, cells


def test_two_searches_are_two_lines_whatever_they_have_chosen(searched):
    _, store, cells = searched
    (found,) = tables.summaries(results.table(store, cells).to_pylist())
    assert found.header == ["target", "search", "method", "100%"]
    lines = [(row[1], row[2]) for row in found.rows]
    both = ["grid epochs 100", "halving epochs 100"]
    assert sorted(lines) == sorted([("-", "none"), *product(both, ["simclr", "byol"])])
    assert "learning_rate chosen, weight_decay chosen" in found.caption
    notes = tables.notes(results.table(store, cells).to_pylist())
    best = "learning_rate 0.003, weight_decay 0.0001 chosen on validation of medmnist/breastmnist"
    assert f"simclr on vit/tiny-14: {best} (4 encoders)" in notes
    other = best.replace("0.003", "0.3").replace("0.0001", "0.001")  # all alike: the grid's first
    assert f"byol on vit/tiny-14: {other} (4 encoders)" in notes


def test_choices_shows_what_was_chosen_of_what(searched):
    file, store, _ = searched
    done = CliRunner().invoke(app, ["choices", str(file), "--store", str(store.root)])
    assert done.exit_code == 0, done.output
    assert done.output.count("chosen") == 4
    (line, *_) = [line.split() for line in done.output.splitlines() if "chosen" in line]
    assert line == ["1", "100", "0.003", "0.0001", "0.9000", "chosen"]
    assert sum(line.split()[:2] == ["3", "66"] for line in done.output.splitlines()) == 4
    file.write_text(re.sub("search=.*", "", FILE))
    done = CliRunner().invoke(app, ["choices", str(file), "--store", str(store.root)])
    assert done.exit_code == 2
    assert "this sweep has no Search" in done.output


def test_its_words_tell_searches_apart():
    assert str(Search()) == "grid"
    assert str(HALVING) == "halving epochs 100"
    few = Search(learning_rate=[0.1, 0.01], weight_decay=0.5, seed=3, metric="val_accuracy")
    assert str(few) == "grid learning_rate 0.1 0.01 weight_decay 0.5 seed 3 metric val_accuracy"
    assert str(Search(by=("knn", {"neighbours": 3}))) == "grid by knn neighbours 3"
