"""SimCLR: two views of an image should be nearest to each other among everything in the batch.

    x -> two crops -> encoder -> head -> NT-Xent over all 2B projections

Every other image in the batch is a negative, so the batch size is part of the method: B images give
2B - 2 negatives each. Head without batch norm, temperature and widths as arXiv 2412.19124 has them.
Chen et al. 2020, https://arxiv.org/abs/2002.05709
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import in_float32, mlp, spread
from medssl.ranges import Count, Positive

# B images, N = 2B rows, D encoder features, P projection


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    temperature: Positive = 0.2  # divides cosine similarity; lower looks harder at near negatives
    hidden_dim: Count = 4096  # width of the head
    out_dim: Count = 512  # P


class Method(SSLMethod):
    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        self.head = mlp(encoder.dim, config.hidden_dim, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        z_NP = self.head(self.encoder(torch.cat(tuple(views))))  # both views share batch statistics
        return Step(nt_xent(z_NP, self.config.temperature), {"spread": spread(z_NP)})


@in_float32
def nt_xent(z_NP: Tensor, temperature: float) -> Tensor:
    """-log softmax of each row's partner, half the rows away, among all rows but itself."""
    z_NP, own_N = F.normalize(z_NP, dim=1), torch.arange(len(z_NP), device=z_NP.device)
    cosine_NN = (z_NP @ z_NP.T).masked_fill(own_N == own_N[:, None], -torch.inf)
    return F.cross_entropy(cosine_NN / temperature, own_N.roll(len(own_N) // 2))
