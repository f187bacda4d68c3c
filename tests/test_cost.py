"""What took long will take long: by rows of the store, and by nothing else."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from medssl import cost, results
from medssl.spec import Sweep
from medssl.store import Store

SWEEP = Sweep(
    name="t",
    method="simclr",
    dataset="medmnist/breastmnist",  # 546 images
    backbone="resnet/18-3x3",
    image_size=28,
    epochs=10,
    eval="knn",
    label_fraction=[0.1, 1.0],
)
CELLS = SWEEP.cells()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(cell=CELLS[0], pretrain_s=54.6, eval_s=2.0, device="H100", at=0, **more) -> dict:
    spec = {name: getattr(cell.encoder, name) for name in cost.ASKED if name != "encoder"}
    asked = {name: getattr(cell, name) for name in cost.ASKED_CELL}
    asked["settings"] = json.dumps(dict(cell.settings))
    times = {"pretrain_s": pretrain_s, "eval_s": eval_s, "finished_at": NOW + timedelta(days=at)}
    where = {"encoder": cell.encoder.id, "encoder_device": device, "device": device, "notes": ""}
    return spec | asked | times | where | more


def spec(**changes):
    return replace(CELLS[0].encoder, **changes)


def test_an_encoder_takes_as_long_for_an_image_as_the_like_of_it():
    costs = cost.Costs([row()])  # 0.01 s an image and epoch
    assert costs.encoder_s(spec(epochs=20, seed=5)) == pytest.approx(109.2)
    assert costs.encoder_s(spec(train_images=100)) == pytest.approx(10)
    assert costs.encoder_s(spec(dataset="medmnist/pneumoniamnist")) == pytest.approx(470.8)
    assert costs.encoder_s(spec(method="none")) == 0
    assert costs.encoder_s(spec(backbone="resnet/50-3x3")) is None
    assert costs.encoder_s(spec(image_size=64)) is None


def test_another_method_takes_longer_by_what_it_says_it_costs():
    costs = cost.Costs([row()])
    assert costs.encoder_s(spec(method="dino")) == pytest.approx(2 * 54.6)
    both = cost.Costs([row(), row(replace(CELLS[0], encoder=spec(method="dino")), 546)])
    assert both.encoder_s(spec(method="dino", seed=1)) == pytest.approx(546)
    assert both.encoder_s(spec(method="byol")) == pytest.approx(2 * (54.6 + 273) / 2)


def test_the_device_that_was_seen_last_is_asked_of_encoders_and_of_cells():
    costs = cost.Costs([row(device="CPU", pretrain_s=9999, eval_s=99, at=1), row(at=2)])
    assert (costs.device, costs.encoder_device) == ("H100", "H100")
    assert costs.encoder_s(spec()) == pytest.approx(54.6)
    assert costs.cell_s(CELLS[0]) == 2
    judged = row(device="CPU", at=3, encoder_device="H100")  # the same encoder, on a laptop
    costs = cost.Costs([row(), judged])
    assert (costs.device, costs.encoder_device) == ("CPU", "H100")
    assert costs.encoder_s(spec()) == pytest.approx(54.6)


def test_what_ended_early_or_leaves_no_rows_is_no_measure():
    assert (
        cost.Costs([row(notes="ended after 6 of 10 epochs: collapsed")]).encoder_s(spec()) is None
    )
    assert cost.Costs([row()]).encoder_s(spec(method="supervised")) is None


def test_a_cell_takes_as_long_as_the_same_question_of_the_same_set():
    costs = cost.Costs([row(eval_s=2.0), row(CELLS[1], eval_s=20.0)])
    assert costs.cell_s(CELLS[1]) == 20
    assert costs.cell_s(replace(CELLS[1], label_fraction=0.5)) == 11
    assert costs.cell_s(replace(CELLS[1], eval="finetune")) is None
    assert costs.cell_s(replace(CELLS[1], settings=(("neighbours", 5),))) is None
    assert costs.cell_s(replace(CELLS[1], target="medmnist/pathmnist")) is None
    elsewhere = replace(CELLS[1], source="medmnist/pathmnist")  # whose fit is another cell's
    assert costs.cell_s(elsewhere) is None


def test_an_estimate_says_what_it_does_not_know_and_what_it_costs():
    costs = cost.Costs([row(pretrain_s=36000, eval_s=360)])
    odd = replace(CELLS[0], eval="finetune")
    found = cost.estimate([*CELLS, odd, odd], [spec(), spec(image_size=64)], costs)
    assert (found.known_s, found.unknown, found.unjudged) == (36000 + 2 * 360, 1, 2)
    said = "about 10 GPU-hours of H100, by what this store has measured: 25.50 at 2.5 an hour; "
    assert (
        found.told(True, 2.5) == said + "without 1 encoder and 2 cells, of which it knows no like"
    )
    half = cost.estimate(CELLS, [spec()], costs, lambda _: 0.5)
    assert half.told(True, None).startswith("about 5.1 GPU-hours of H100")
    assert found.told(False, None).startswith("about 10 hours of H100")
    assert (
        cost.estimate(CELLS[:1], [], costs).told(False, None).startswith("about 6 minutes of H100")
    )
    assert cost.estimate(CELLS, [spec()], cost.UNKNOWN).told(True, 2.5) == ""


def test_a_store_is_read_once_for_each_cell(tmp_path):
    store = Store(tmp_path)
    assert cost.of_store(store).device == ""
    for cell in CELLS:
        about = {"device": "CPU", "encoder_device": "CPU", "finished_at": NOW}
        about |= {"pretrain_s": 54.6, "eval_s": 3.0}
        results.save(store, cell, {"auroc": 0.5, "accuracy": 0.5}, {}, about)
    costs = cost.of_store(store)
    assert costs.encoder_s(spec(epochs=1)) == pytest.approx(5.46)
    assert costs.cell_s(CELLS[1]) == 3


def test_a_store_is_learned_from_though_some_of_it_is_broken_or_new(tmp_path, monkeypatch):
    store, about = Store(tmp_path), {"device": "CPU", "finished_at": NOW}
    for seconds, cell in enumerate(CELLS):
        results.save(store, cell, {"auroc": 0.5}, {}, about | {"eval_s": float(seconds)})
    results.table(store, CELLS)
    monkeypatch.setattr(results, "FEW", 0)
    results.table(store, CELLS)
    assert (store.root / results.KEPT).exists()
    for cell in CELLS[:1]:  # opened no more
        (store.root / "rows" / f"{cell.id}.parquet").write_bytes(b"broken")
    assert sorted(results.history(store, ["eval_s"])["eval_s"].to_pylist()) == list(
        range(len(CELLS))
    )
    (store.root / results.KEPT).write_bytes(b"broken")
    known = results.history(store, ["eval_s"])["eval_s"].to_pylist()
    assert sorted(known) == list(range(1, len(CELLS)))
    opened = []
    read = Store.read
    monkeypatch.setattr(
        Store, "read", lambda self, name: (opened.append(name), read(self, name))[1]
    )
    monkeypatch.setattr(results, "SOME", 1)
    results.history(store, ["eval_s"])
    assert len(opened) == 2  # rows.parquet, and one
    assert results.history(Store(tmp_path / "none"), ["eval_s"]).num_rows == 0


def weights(unknown=(), /, **seconds) -> dict[str, cost.Weight]:
    return {
        id: cost.Weight(s, s * (id not in unknown), id not in unknown) for id, s in seconds.items()
    }


def emptied(queue) -> list[str]:
    """On one slot."""
    found = []
    while (id := queue.next()) is not queue.END:
        found.append(id)
        queue.ended(id, ok=True)
    return found


def test_the_longest_chain_is_first():
    parents = {"child": ["above"], "grandchild": ["child"]}
    queue = cost.Queue(weights(a=1, b=5, above=2, child=4, grandchild=3), parents)
    assert emptied(queue) == ["above", "child", "b", "grandchild", "a"]


def test_what_waits_is_begun_when_its_parent_has_ended_well():
    queue = cost.Queue(weights(above=9, child=5, b=1), {"child": ["above"]})
    assert [queue.next(), queue.next(), queue.next()] == ["above", "b", None]
    queue.ended("b", ok=True)
    assert queue.next() is None
    queue.ended("above", ok=True)
    assert queue.next() == "child"
    failed = cost.Queue(weights(above=9, child=5), {"child": ["above"]})
    assert failed.next() == "above"
    failed.ended("above", ok=False)
    assert failed.next() is failed.END
    assert failed.left == ["child"]


def begin(queue: cost.Queue) -> str:
    id = queue.next()
    queue.started(id)
    return id


def test_a_budget_passes_over_what_would_exceed_it():
    clock = [0.0]
    seconds = weights(["unknown"], long=100, middle=60, short=30, unknown=1)
    queue = cost.Queue(seconds, {}, budget_s=95, now=lambda: clock[0])
    assert [begin(queue) for _ in range(3)] == ["middle", "short", "unknown"]
    assert queue.next() is None  # they may be done sooner than is expected
    clock[0] = 10
    queue.ended("middle", ok=True)
    queue.ended("short", ok=True)
    assert queue.spent_s == 20
    assert queue.next() is None  # 95 - 20 - 10 so far of the unknown one are too few for the long
    queue.ended("unknown", ok=True)
    assert queue.next() is queue.END
    assert queue.left == ["long"]
    assert queue.told(
        False
    ) == "30 seconds in trials; 2 of them took 20 seconds, where 2 minutes " + ("were expected")


def test_a_quarter_of_a_gpu_takes_a_quarter_of_a_budget():
    clock, shares = [0.0], {"long": 0.25, "middle": 0.5}
    queue = cost.Queue(weights(long=100, middle=60), {}, 54, lambda: clock[0], shares)
    assert begin(queue) == "long"  # 25 of 54
    assert queue.next() is None  # 30 of the 29 that are left
    clock[0] = 80
    queue.ended("long", ok=True)
    assert queue.spent_s == 20
    assert begin(queue) == "middle"
    clock[0] = 200
    queue.ended("middle", ok=True)
    told = "80 GPU-seconds in trials; 2 of them took 80 GPU-seconds, where 55 GPU-seconds were "
    assert queue.told(True) == told + "expected"


def test_nothing_overtakes_what_does_not_fit_yet():
    queue = cost.Queue(weights(large=3, small=1), {})
    assert queue.next(lambda id: id == "small") is None
    assert queue.next() == "large"
    assert queue.next(lambda id: id == "small") == "small"
    assert queue.next() is queue.END


def test_none_is_begun_once_a_budget_is_spent():
    clock = [0.0]
    queue = cost.Queue(weights("ab", a=1, b=1), {}, budget_s=5, now=lambda: clock[0])
    first = begin(queue)
    clock[0] = 6
    assert queue.next() is None
    queue.ended(first, ok=True)
    assert queue.next() is queue.END


def test_what_waits_for_a_node_costs_nothing_yet():
    clock = [0.0]
    queue = cost.Queue(weights("c", a=5, b=5, c=1), {}, budget_s=12, now=lambda: clock[0])
    assert [queue.next(), queue.next()] == ["a", "b"]
    clock[0] = 600
    assert queue.next() == "c"  # 10 of 12 are still expected of the others, and no more
    queue.started("a")
    clock[0] = 604
    queue.started("a")  # again, on another node: what it took before counts
    clock[0] = 606
    queue.ended("a", ok=True)
    queue.ended("b", ok=False)  # never had a slot
    assert queue.spent_s == 6


def test_what_is_known_of_a_trial_counts_though_not_all_of_it_is():
    costs = cost.Costs([row(pretrain_s=36000)])
    odd = replace(CELLS[0], eval="finetune")
    found = cost.weight([odd], spec(), True, costs)
    assert (found.known_s, found.sure) == (36000, False)
    queue = cost.Queue({"a": found}, {}, budget_s=3600)
    assert queue.next() is queue.END
    assert cost.weight([odd], spec(), True, cost.UNKNOWN).order_s > 0
    assert cost.weight(CELLS, spec(), False, costs) == (4, 4, True)
