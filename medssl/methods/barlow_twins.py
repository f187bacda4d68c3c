"""Barlow Twins: the two views' features should agree one by one, and say different things.

    x -> two crops -> encoder -> head -> correlation matrix of a and b (P x P) -> the identity

No negatives and nothing that stops a gradient: what forbids collapse is that a constant feature has
no correlation to be 1. Likes a wide P, not a large batch.
Zbontar et al. 2021, https://arxiv.org/abs/2103.03230; scaled and sized as solo-learn has it
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import bn_mlp, in_float32, spread
from medssl.ranges import Count, Positive, Weight

# B images, P projection


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    redundancy: Weight = 0.0051  # weight of what different features share; higher spreads them more
    scale: Positive = 0.1  # of the whole loss
    hidden_dim: Count = 2048  # width of the head
    out_dim: Count = 2048  # P


class Method(SSLMethod):
    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        self.head = bn_mlp(encoder.dim, config.hidden_dim, config.hidden_dim, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        a_BP, b_BP = (self.head(self.encoder(x)) for x in views)
        loss = decorrelate(a_BP, b_BP, self.config.redundancy)
        return Step(self.config.scale * loss, {"spread": spread(a_BP)})


@in_float32
def decorrelate(a_BP: Tensor, b_BP: Tensor, redundancy: float) -> Tensor:
    """Squared distance of the correlation matrix from the identity, off the diagonal weighted."""
    a_BP, b_BP = (nn.functional.batch_norm(z, None, None, training=True) for z in (a_BP, b_BP))
    eye_PP = torch.eye(a_BP.shape[1], device=a_BP.device)
    away_PP = (a_BP.T @ b_BP / len(a_BP) - eye_PP).square()
    return (away_PP * (eye_PP + redundancy * (1 - eye_PP))).sum()
