"""SimCLR: two views of an image should be nearest to each other among everything in the batch.

    x -> two crops -> encoder -> head -> NT-Xent over all 2B projections

Every other image in the batch is a negative, so the batch size is part of the method: B images give
2B - 2 negatives each. Head without batch norm, temperature and widths as arXiv 2412.19124 has them.
Chen et al. 2020, https://arxiv.org/abs/2002.05709; the loss is solo-learn's
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import mlp, spread
from medssl.methods._solo import simclr_loss

# B images, V views, N = V*B rows, D encoder features, P projection


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    temperature: float = 0.2  # divides cosine similarity; lower looks harder at near negatives
    hidden_dim: int = 4096  # width of the head
    out_dim: int = 512  # P


class Method(SSLMethod):
    views = "two_crops"

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__()
        self.encoder, self.config = encoder, config
        self.head = mlp(encoder.dim, config.hidden_dim, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        x_NCHW = torch.cat(tuple(views))  # one pass, so both views share batch statistics
        z_NP = self.head(self.encoder(x_NCHW))
        z1_BP, z2_BP = z_NP.chunk(2)
        loss = simclr_loss(z1_BP, z2_BP, temperature=self.config.temperature)
        return Step(loss, {"spread": spread(z_NP)})
