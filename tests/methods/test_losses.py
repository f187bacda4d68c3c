"""Every loss beside the same loss by others: solo-learn's, and lightly's where they agree."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.methods import (
    _parts,
    _solo,
    barlow_twins,
    simclr,
    swav,
    vicreg,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # lightly speaks of its own dependencies
    lightly = pytest.importorskip("lightly.loss")

B, P, K, M = 12, 10, 20, 32


def unit(z: Tensor) -> Tensor:
    return F.normalize(z, dim=1)


def centred(student_NK: Tensor, teacher_NK: Tensor, centre_K: Tensor, views: int) -> Tensor:
    """DINO's loss as the method has it, from scores with the views one after another."""
    target_2BK = ((teacher_NK.unflatten(0, (2, B)) - centre_K) / 0.05).softmax(2)
    return _parts.swapped(target_2BK, student_NK.unflatten(0, (views, B)), 0.1)


def solo_dino(student_NK: Tensor, teacher_NK: Tensor, centre_K: Tensor, views: int) -> Tensor:
    loss = _solo.dino_loss(K, 0.05, 0.05, 0, 1, num_large_crops=views)
    loss.center = centre_K[None]
    return loss(student_NK, teacher_NK)


def lightly_dino(student_NK: Tensor, teacher_NK: Tensor, centre_K: Tensor, views: int) -> Tensor:
    loss = lightly.DINOLoss(K, warmup_teacher_temp=0.05, teacher_temp=0.05, student_temp=0.1)
    loss.center = centre_K[None, None]
    return loss(list(teacher_NK.chunk(2)), list(student_NK.chunk(views)), epoch=0)


def clustered(a_BK: Tensor, b_BK: Tensor, local_BK: Tensor) -> Tensor:
    """SwAV's loss as the method has it, from cosines of two crops and of a small one."""
    ones_B = torch.ones(B)
    with torch.no_grad():
        target = [swav.sinkhorn(s, ones_B, swav.Config()) for s in (a_BK, b_BK)]
    return _parts.swapped(torch.stack(target), torch.stack([a_BK, b_BK, local_BK]), 0.1)


def lightly_moco(query_BP: Tensor, key_BP: Tensor, queue_MP: Tensor) -> Tensor:
    loss = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(M, P))
    loss.memory_bank.bank = unit(queue_MP)
    return loss(query_BP, key_BP)


SAME = {
    "barlow_twins, solo-learn": (
        lambda a, b: 0.1 * barlow_twins.decorrelate(a, b, 0.0051),
        lambda a, b: _solo.barlow_loss(a, b, lamb=0.0051, scale_loss=0.1),
        [(B, P), (B, P)],
    ),
    "barlow_twins, lightly": (
        lambda a, b: barlow_twins.decorrelate(a, b, 0.0051),
        lambda a, b: lightly.BarlowTwinsLoss(lambda_param=0.0051)(a, b),
        [(B, P), (B, P)],
    ),
    "byol, lightly": (  # a distance, not a similarity: 2 - 2 cos
        lambda a, b: _solo.byol_loss(a, b),
        lambda a, b: 2 + 2 * lightly.NegativeCosineSimilarity()(a, b.detach()),
        [(B, P), (B, P)],
    ),
    "dino, solo-learn": (
        lambda s, t, c: centred(s, t.detach(), c.detach(), 2),
        lambda s, t, c: solo_dino(s, t.detach(), c.detach(), 2),
        [(2 * B, K), (2 * B, K), (K,)],
    ),
    "dino with local crops, lightly": (
        lambda s, t, c: centred(s, t.detach(), c.detach(), 5),
        lambda s, t, c: lightly_dino(s, t.detach(), c.detach(), 5),
        [(5 * B, K), (2 * B, K), (K,)],
    ),
    "moco, lightly": (
        lambda q, k, m: _solo.moco_loss(unit(q), unit(k.detach()), unit(m.detach()).T, 0.2),
        lambda q, k, m: lightly_moco(q, k.detach(), m.detach()),
        [(B, P), (B, P), (M, P)],
    ),
    "simclr, solo-learn": (
        lambda a, b: simclr.nt_xent(torch.cat([a, b]), 0.2),
        lambda a, b: _solo.simclr_loss(a, b, temperature=0.2),
        [(B, P), (B, P)],
    ),
    "simclr, lightly": (
        lambda a, b: simclr.nt_xent(torch.cat([a, b]), 0.2),
        lambda a, b: lightly.NTXentLoss(temperature=0.2)(a, b),
        [(B, P), (B, P)],
    ),
    "simsiam, lightly": (
        lambda a, b: _solo.simsiam_loss(a, b),
        lambda a, b: lightly.NegativeCosineSimilarity()(a, b.detach()),
        [(B, P), (B, P)],
    ),
    "swav, solo-learn": (
        lambda a, b, ta, tb: _parts.swapped(
            torch.stack([ta, tb]).detach().softmax(2), torch.stack([a, b]), 0.1
        ),
        lambda a, b, ta, tb: _solo.swav_loss(
            [a, b], [ta.detach().softmax(1), tb.detach().softmax(1)], 0.1
        ),
        [(B, K)] * 4,
    ),
    "swav with a local crop, lightly": (
        lambda a, b, c: clustered(a.tanh(), b.tanh(), c.tanh()),
        lambda a, b, c: lightly.SwaVLoss()([a.tanh(), b.tanh()], [c.tanh()])[0],
        [(B, K)] * 3,
    ),
    "vicreg, solo-learn": (
        lambda a, b: vicreg.vicreg(a, b, vicreg.Config()),
        lambda a, b: _solo.vicreg_loss(a, b),
        [(B, P), (B, P)],
    ),
    "vicreg, lightly": (  # its variance term is the mean over the views, ours (the paper's) the sum
        lambda a, b: vicreg.vicreg(a, b, vicreg.Config()),
        lambda a, b: lightly.VICRegLoss(25.0, 50.0, 1.0)(a, b),
        [(B, P), (B, P)],
    ),
}


@pytest.mark.parametrize("pair", SAME)
def test_it_is_the_same_in_value_and_gradient(pair):
    ours, theirs, shapes = SAME[pair]
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    found = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = loss(*leaves)
        value.backward()
        found.append((value.detach(), [x.grad for x in leaves]))
    (value, grads), (their_value, their_grads) = found
    torch.testing.assert_close(value, their_value, rtol=1e-5, atol=0)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)
    for mine, other in zip(grads, their_grads, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_sinkhorn_is_solo_learns():
    torch.manual_seed(0)
    score_NK = F.normalize(torch.randn(40, 8), dim=1) @ F.normalize(torch.randn(8, 16), dim=0)
    ours = swav.sinkhorn(score_NK, torch.ones(40), swav.Config())
    torch.testing.assert_close(ours, _solo.sinkhorn(3, 0.05)(score_NK), rtol=1e-5, atol=1e-8)


def test_rows_that_do_not_count_change_no_assignment():
    torch.manual_seed(0)
    score_NK = F.normalize(torch.randn(40, 8), dim=1) @ F.normalize(torch.randn(8, 16), dim=0)
    alone = swav.sinkhorn(score_NK[:12], torch.ones(12), swav.Config())
    beside = swav.sinkhorn(score_NK, (torch.arange(40) < 12).float(), swav.Config())
    torch.testing.assert_close(beside[:12], alone)
    assert beside[12:].sum() == 0
    borrowed = swav.sinkhorn(score_NK, torch.ones(40), swav.Config())
    assert (borrowed[:12] - alone).abs().max() > 0.01
