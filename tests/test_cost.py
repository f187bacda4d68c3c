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
    where = {"encoder": cell.encoder.id, "encoder_device": device, "device": device}
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


def test_the_device_that_was_seen_last_is_asked():
    costs = cost.Costs([row(device="CPU", pretrain_s=9999, at=1), row(at=2)])
    assert costs.device == "H100"
    assert costs.encoder_s(spec()) == pytest.approx(54.6)


def test_a_cell_takes_as_long_as_the_most_alike():
    costs = cost.Costs([row(eval_s=2.0), row(CELLS[1], eval_s=20.0)])
    assert costs.cell_s(CELLS[1]) == 20
    assert costs.cell_s(replace(CELLS[1], label_fraction=0.5)) == 11
    assert costs.cell_s(replace(CELLS[1], eval="finetune")) is None


def test_an_estimate_says_what_it_does_not_know_and_what_it_costs():
    costs = cost.Costs([row(pretrain_s=3600, eval_s=360)])
    odd = replace(CELLS[0], eval="finetune")
    found = cost.estimate([*CELLS, odd], [spec(), spec(image_size=64)], costs)
    assert (found.known_s, found.unknown, found.unjudged) == (3600 + 2 * 360, 1, 1)
    said = "about 1.2 GPU-hours of H100, by what this store has measured: 3.00 at 2.5 an hour; "
    assert found.told(1, 2.5) == said + "without 1 encoders and 1 cells, of which it knows no like"
    assert found.told(0.5, None).startswith("about 0.6 GPU-hours of H100")
    assert found.told(0, None).startswith("about 1.2 hours of H100")
    assert cost.estimate(CELLS, [spec()], cost.UNKNOWN).told(1, 2.5) == ""


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


def emptied(queue) -> list[str]:
    """On one slot."""
    found = []
    while (id := queue.next()) is not queue.END:
        found.append(id)
        queue.ended(id, ok=True)
    return found


def test_the_longest_chain_is_first():
    seconds = {"a": 1, "b": 5, "above": 2, "child": 4, "grandchild": 3}
    parents = {"child": "above", "grandchild": "child"}
    assert emptied(cost.Queue(seconds, parents)) == ["above", "child", "b", "grandchild", "a"]


def test_what_waits_is_begun_when_its_parent_has_ended_well():
    queue = cost.Queue({"above": 9, "child": 5, "b": 1}, {"child": "above"})
    assert [queue.next(), queue.next(), queue.next()] == ["above", "b", None]
    queue.ended("b", ok=True)
    assert queue.next() is None
    queue.ended("above", ok=True)
    assert queue.next() == "child"
    failed = cost.Queue({"above": 9, "child": 5}, {"child": "above"})
    assert failed.next() == "above"
    failed.ended("above", ok=False)
    assert failed.next() is failed.END
    assert failed.left == ["child"]


def test_a_budget_passes_over_what_would_exceed_it():
    clock = [0.0]
    seconds = {"long": 100, "middle": 60, "short": 30, "unknown": 1}
    queue = cost.Queue(seconds, {}, ["unknown"], budget_s=95, now=lambda: clock[0])
    assert [queue.next(), queue.next(), queue.next()] == ["middle", "short", "unknown"]
    assert queue.next() is None  # they may be done sooner than is expected
    clock[0] = 10
    queue.ended("middle", ok=True)
    queue.ended("short", ok=True)
    assert queue.spent_s == 20
    assert queue.next() is None  # 95 - 20 - 10 so far of the unknown one are too few for the long
    queue.ended("unknown", ok=True)
    assert queue.next() is queue.END
    assert queue.left == ["long"]


def test_none_is_begun_once_a_budget_is_spent():
    clock = [0.0]
    queue = cost.Queue({"a": 1, "b": 1}, {}, ["a", "b"], budget_s=5, now=lambda: clock[0])
    assert queue.next() in ("a", "b")
    clock[0] = 6
    assert queue.next() is None
    queue.ended("a" if "b" in queue.left else "b", ok=True)
    assert queue.next() is queue.END
