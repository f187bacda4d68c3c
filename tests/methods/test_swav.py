"""SwAV: resting prototypes, and queues that count only once they mean something."""

import pytest
import torch
from torch.nn import functional as F

from medssl.methods.swav import Config, Method


@pytest.fixture
def method(tiny_encoder):
    torch.manual_seed(0)
    return Method(
        tiny_encoder(), Config(hidden_dim=32, out_dim=16, prototypes=20, queue=24, queue_from=0.5)
    )


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, s, s, generator=g) for s in (32, 32, 16, 16)]


def test_prototypes_rest_first_and_move_then(method, views):
    method.step(views).loss.backward()
    assert method.prototypes_KP.grad.abs().sum() == 0
    method.after_update(0.1)
    method.step(views).loss.backward()
    assert method.prototypes_KP.grad.abs().sum() > 0


def test_queues_count_from_their_share_of_the_training_on(method, views):
    early = method.step(views).loss
    for queue in method.queues:
        queue.keys_MP.copy_(F.normalize(torch.randn_like(queue.keys_MP), dim=1))
    assert torch.equal(method.step(views).loss, early)
    method.borrow.fill_(1)
    assert not torch.equal(method.step(views).loss, early)
    method.after_update(0.4)
    assert method.borrow == 0
    method.step(views)
    method.after_update(0.5)
    assert method.borrow == 1


def test_assignments_are_balanced_over_the_batch(method, views):
    target_BK = method.assign(torch.randn(400, 16), method.queues[0])
    torch.testing.assert_close(target_BK.sum(1), torch.ones(400))
    assert target_BK.sum(0).min() > 0.5 * 400 / 20
    assert target_BK.sum(0).max() < 2 * 400 / 20


def test_each_of_the_two_crops_has_a_queue_of_its_own(method, views):
    method.step(views)
    method.after_update(0.0)
    first, second = (queue.keys_MP[:8] for queue in method.queues)
    assert not torch.equal(first, second)
