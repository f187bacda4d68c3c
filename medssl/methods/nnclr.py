"""NNCLR: like SimCLR, but the positive is not your own image: it is its nearest neighbour.

    x -> two crops: a -> encoder -> head -> nearest of the queue
                    b -> encoder -> head -> predictor -> which row of a's neighbours is mine?

So a positive can be another patient with the same finding, which no augmentation could make. The
queue holds this network's own projections (there is no teacher). On a small set, and early on,
neighbours are poor: read the curve before judging it.
Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548; the loss is solo-learn's
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import bn_mlp, cosine, spread
from medssl.methods._queue import Queue
from medssl.methods._solo import nnclr_loss
from medssl.ranges import Count, Positive

# B images, M projections in the queue, P projection


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    temperature: Positive = 0.2  # divides cosine similarity; lower looks harder at near negatives
    queue: Count = 65536  # M, at most half the images; more candidates, older ones
    hidden_dim: Count = 2048  # width of the head
    predictor_dim: Count = 4096  # width of the predictor
    out_dim: Count = 256  # P


class Method(SSLMethod):
    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        hidden, out = config.hidden_dim, config.out_dim
        self.head = nn.Sequential(bn_mlp(encoder.dim, hidden, hidden, out), nn.BatchNorm1d(out))
        self.predictor = bn_mlp(out, config.predictor_dim, out)
        self.queue = Queue(config.queue, out)

    def step(self, views: Sequence[Tensor]) -> Step:
        a_BP, b_BP = (self.head(self.encoder(x)) for x in views)
        a_near_BP, b_near_BP = self.nearest(a_BP), self.nearest(b_BP)
        self.queue.hold(a_BP)
        t = self.config.temperature
        loss = nnclr_loss(a_near_BP, self.predictor(b_BP), temperature=t)
        loss = loss + nnclr_loss(b_near_BP, self.predictor(a_BP), temperature=t)
        return Step(loss / 2, {"spread": spread(a_BP)})

    def nearest(self, z_BP: Tensor) -> Tensor:
        """The key of the queue with the highest cosine to each row; a choice, so no gradient."""
        return self.queue.keys_MP[cosine(z_BP.detach(), self.queue.keys_MP).argmax(1)]

    def after_update(self, progress: float) -> None:
        self.queue.rotate()
