"""VICReg: views agree (invariance), features vary (variance) and say different things (covariance).

    x -> two crops -> encoder -> head -> a, b: 25 * |a - b|^2 + 25 * hinge(1 - std) + covariances

Barlow Twins' aims as three separate terms, each view's statistics apart. The variance term is the
sum over the two views, as in the paper and solo-learn: twice that of the authors' code.
Bardes et al. 2021, https://arxiv.org/abs/2105.04906
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import bn_mlp, in_float32, spread
from medssl.ranges import Count, Weight

# B images, P projection


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    invariance: Weight = 25.0  # weight of the distance between views
    variance: Weight = 25.0  # weight of keeping each feature's deviation at 1; too low collapses
    covariance: Weight = 1.0  # weight of telling features apart
    hidden_dim: Count = 2048  # width of the head
    out_dim: Count = 2048  # P


class Method(SSLMethod):
    preset = "vicreg"

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        self.head = bn_mlp(encoder.dim, config.hidden_dim, config.hidden_dim, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        a_BP, b_BP = (self.head(self.encoder(x)) for x in views)
        return Step(vicreg(a_BP, b_BP, self.config), {"spread": spread(a_BP)})


@in_float32
def vicreg(a_BP: Tensor, b_BP: Tensor, weights: Config) -> Tensor:
    """The weighted sum of the three terms; variance and covariance summed over the views."""
    loss = weights.invariance * (a_BP - b_BP).square().mean()
    for z_BP in (a_BP, b_BP):
        loss = loss + weights.variance * (1 - (z_BP.var(0) + 1e-4).sqrt()).clamp_min(0).mean()
        z_BP, eye_PP = z_BP - z_BP.mean(0), torch.eye(z_BP.shape[1], device=z_BP.device)
        shared_PP = z_BP.T @ z_BP / (len(z_BP) - 1) * (1 - eye_PP)
        loss = loss + weights.covariance * shared_PP.square().sum() / len(shared_PP)
    return loss
