"""NNCLR: the positive is the nearest of the queue, and no gradient goes through the choice."""

import torch
from torch.nn import functional as F

from medssl.methods.nnclr import Config, Method


def test_the_nearest_key_is_the_one_with_the_highest_cosine(tiny_encoder):
    torch.manual_seed(0)
    method = Method(tiny_encoder(), Config(queue=50, out_dim=8, hidden_dim=16, predictor_dim=16))
    picked = torch.tensor([7, 3, 40])
    near = 5 * method.queue.keys_MP[picked] + 0.01 * torch.randn(3, 8)
    assert torch.equal(method.nearest(near.requires_grad_()), method.queue.keys_MP[picked])
    assert not method.nearest(near).requires_grad


def test_neighbours_are_looked_for_among_the_projections_of_the_first_view(tiny_encoder):
    torch.manual_seed(0)
    method = Method(tiny_encoder(), Config(queue=8, out_dim=8, hidden_dim=16, predictor_dim=16))
    views = [torch.rand(8, 3, 32, 32) for _ in range(2)]
    method.step(views)
    method.after_update(0.0)
    a_BP = method.head(method.encoder(views[0]))
    torch.testing.assert_close(method.queue.keys_MP, F.normalize(a_BP, dim=1).detach())
    torch.testing.assert_close(method.nearest(a_BP), method.queue.keys_MP)
