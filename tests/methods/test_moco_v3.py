"""MoCo v3's loss against the sentence of its paper, written out slowly."""

import math

import pytest
import torch
from torch import nn

from medssl.methods.moco_v3 import Config, Method, contrast


def slow(q_BP, k_BP, temperature):
    q = [row / row.norm() for row in q_BP]
    k = [row / row.norm() for row in k_BP]
    total = 0.0
    for i, mine in enumerate(q):
        similar = [math.exp(float(mine @ other) / temperature) for other in k]
        total -= math.log(similar[i] / sum(similar))
    return 2 * temperature * total / len(q)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_equals_the_slow_definition(temperature):
    q, k = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = slow(q, k, temperature)
    assert contrast(q, k, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_heads_are_deeper_on_a_vit_as_in_the_paper(tiny_encoder):
    def linears(module):
        return sum(isinstance(m, nn.Linear) for m in module.modules())

    plain = Method(tiny_encoder(), Config())
    vit = tiny_encoder()
    vit.patch_embed = nn.Identity()
    deep = Method(vit, Config())
    assert (linears(plain.student), linears(plain.predictor)) == (2, 2)
    assert (linears(deep.student), linears(deep.predictor)) == (3, 2)
    assert isinstance(deep.predictor[-1], nn.BatchNorm1d)
    assert not any(m.affine for m in (plain.student[1][-1], deep.predictor[-1]))


def test_keys_get_no_gradient(tiny_encoder):
    method = Method(tiny_encoder(), Config())
    method.step(torch.rand(2, 8, 3, 32, 32)).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
