"""The queue: a ring of unit keys, the oldest leaving first."""

import pytest
import torch
from torch.nn import functional as F

from medssl import registry
from medssl.methods._queue import Queue


def keys(*values: float) -> torch.Tensor:
    """Directions that are told apart by one number."""
    return torch.stack([torch.tensor([1.0, v]) for v in values])


def test_it_starts_with_unit_directions_that_differ():
    queue = Queue(50, 8)
    torch.testing.assert_close(queue.keys_MP.norm(dim=1), torch.ones(50))
    assert queue.keys_MP.std(0).min() > 0.1


def test_the_oldest_leave_first_and_a_batch_may_lie_across_the_seam():
    queue = Queue(5, 2)
    for batch in (keys(1, 2, 3), keys(4, 5, 6), keys(7)):
        queue.hold(batch)
        queue.rotate()
    torch.testing.assert_close(queue.keys_MP, F.normalize(keys(6, 7, 3, 4, 5), dim=1))


def test_of_a_batch_larger_than_the_queue_the_last_are_kept():
    queue = Queue(2, 2)
    queue.hold(keys(1, 2, 3))
    queue.rotate()
    torch.testing.assert_close(queue.keys_MP, F.normalize(keys(2, 3), dim=1))


def test_holding_changes_nothing_until_the_update():
    queue = Queue(4, 2)
    before = queue.keys_MP.clone()
    queue.hold(keys(1, 2).requires_grad_())
    assert torch.equal(queue.keys_MP, before)
    assert not queue.held_BP.requires_grad


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "nnclr", "ressl", "swav"])
def test_what_a_method_saw_is_in_its_queue_after_the_update(name, tiny_encoder):
    module = registry.load("methods", name)
    method = module.Method(tiny_encoder(), module.Config(queue=20))
    queue = method.queues[0] if name == "swav" else method.queue
    before = queue.keys_MP.clone()
    views = [torch.rand(8, 3, 32, 32) for _ in range(2)]
    method.step(views)
    method.after_update(0.0)
    assert (queue.keys_MP != before).any(1).tolist() == [True] * 8 + [False] * 12
    method.step(views)
    method.after_update(0.0)
    assert (queue.keys_MP != before).any(1).tolist() == [True] * 16 + [False] * 4
