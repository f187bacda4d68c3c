"""SwAV: resting prototypes, and queues that count only once they mean something."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from medssl.methods.swav import Config, Method


@pytest.fixture
def method(tiny_encoder):
    torch.manual_seed(0)
    small = {"hidden_dim": 32, "out_dim": 16, "prototypes": 20, "queue": 24}
    return Method(tiny_encoder(), Config(**small, queue_from=0.5, refills=1))


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, s, s, generator=g) for s in (32, 32, 16, 16)]


def test_prototypes_rest_first_and_move_then(method, views):
    for progress in (0.0, 0.002):  # of 0.0025
        method.step(views).loss.backward()
        assert method.prototypes_KP.grad.abs().sum() == 0
        method.after_update(progress)
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
    borrowed = []
    for progress in (0.4, 0.5, 0.6, 0.7):  # 8 keys each: the queue of 24 is full after three
        method.step(views)
        method.after_update(progress)
        borrowed.append(method.borrow.item())
    assert borrowed == [0, 0, 1, 1]
    late = Method(method.encoder, method.config)
    for queue in late.queues:
        queue.seen.fill_(24)
    late.step(views)
    late.after_update(0.4)
    assert late.borrow == 0


def test_queues_do_not_count_before_they_were_refilled_often(method, views):
    often = Method(method.encoder, replace(method.config, refills=2, queue_from=0.1))
    borrowed = []
    for _ in range(7):  # 8 keys each: twice 24 after six
        often.step(views)
        often.after_update(0.9)
        borrowed.append(often.borrow.item())
    assert borrowed == [0, 0, 0, 0, 0, 1, 1]


def test_prototypes_begin_and_stay_on_the_sphere(method, views):
    torch.testing.assert_close(method.prototypes_KP.norm(dim=1), torch.ones(20))
    optimizer = torch.optim.SGD([method.prototypes_KP], lr=10.0)
    method.open.fill_(1)
    method.step(views).loss.backward()
    optimizer.step()
    assert (method.prototypes_KP.norm(dim=1) - 1).abs().max() > 1e-3
    method.after_update(0.5)
    torch.testing.assert_close(method.prototypes_KP.norm(dim=1), torch.ones(20))


def test_crops_of_one_size_share_their_batch_statistics(method, views):
    seen = []
    method.encoder.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    method.step(views)
    assert seen == [(16, 3, 32, 32), (16, 3, 16, 16)]


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
