"""SwAV: predict one view's cluster from another; clusters are balanced, so they cannot all be one.

    x -> two crops and six small ones -> encoder -> head -> cosine to K prototypes
         two crops: scores -> Sinkhorn -> which prototype, each used equally often: the target

Online clustering without negatives or a teacher. Balance is asked of a batch, so a batch smaller
than K borrows the scores of a queue. Too early, that holds what the encoder has just left behind,
and the features collapse onto a few directions: so it counts after a share of the training (the
paper's code has 15 epochs of 400, and 1 for the prototypes) and once it has been refilled often.
Caron et al. 2020, https://arxiv.org/abs/2006.09882
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import bn_mlp, cosine, gated, spread, swapped, together, unit
from medssl.methods._queue import Queue
from medssl.ranges import Count, Positive, Share, Whole

# B images, V views (2 of them whole crops), K prototypes, M of the queue, N = B + M, P projection


@dataclass(frozen=True)
class Config:
    version: int = 3  # raise it when a fix makes old results wrong; they are then run again
    temperature: Positive = 0.1  # divides cosine similarity in the prediction
    epsilon: Positive = 0.05  # softness of the assignments; lower is nearer to one prototype each
    iterations: Count = 3  # of Sinkhorn; more balances the clusters better
    prototypes: Count = 3000  # K, about ten times the classes one expects, or more
    queue: Count = 3840  # M for each of the two crops, at most half the images
    queue_from: Share = 0.0375  # share of the training after which the queue counts
    refills: Count = 30  # times that new keys fill it before it counts: 15 epochs of few images
    frozen: Share = 0.0025  # share of the training in which the prototypes rest
    local_crops: Whole = 6  # small crops; each costs a small forward pass
    hidden_dim: Count = 2048  # width of the head
    out_dim: Count = 128  # P


class Method(SSLMethod):
    preset = "swav"

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        self.views = f"multi_crop/{config.local_crops}"
        self.head = bn_mlp(encoder.dim, config.hidden_dim, config.out_dim)
        self.prototypes_KP = nn.Parameter(unit(torch.randn(config.prototypes, config.out_dim)))
        self.queues = nn.ModuleList(Queue(config.queue, config.out_dim) for _ in range(2))
        self.register_buffer("open", torch.zeros(()))  # 1 once the prototypes may move
        self.register_buffer("borrow", torch.zeros(()))  # 1 once the queues count

    def step(self, views: Sequence[Tensor]) -> Step:
        z_NP = self.head(together(self.encoder, views).flatten(0, 1))
        score_NK = cosine(z_NP, gated(self.prototypes_KP, self.open))
        z_VBP, score_VBK = (a.unflatten(0, (len(views), -1)) for a in (z_NP, score_NK))
        target_2BK = torch.stack(
            [self.assign(z_VBP[v], queue) for v, queue in enumerate(self.queues)]
        )
        loss = swapped(target_2BK, score_VBK, self.config.temperature)
        return Step(loss, {"spread": spread(z_VBP[0])})

    @torch.no_grad()
    def assign(self, z_BP: Tensor, queue: Queue) -> Tensor:
        """Targets (B, K) of one crop, balanced over its batch and, when it counts, its queue."""
        score_NK = cosine(torch.cat((z_BP.float(), queue.keys_MP)), self.prototypes_KP)
        counts_N = F.pad(self.borrow.expand(len(queue.keys_MP)), (len(z_BP), 0), value=1.0)
        queue.hold(z_BP)
        return sinkhorn(score_NK, counts_N, self.config)[: len(z_BP)]

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        for queue in self.queues:
            queue.rotate()
        self.prototypes_KP.copy_(unit(self.prototypes_KP))
        self.open.fill_(progress >= self.config.frozen)
        settled = self.queues[0].seen >= self.config.refills * self.config.queue
        self.borrow.copy_(settled & (progress >= self.config.queue_from))


def sinkhorn(score_NK: Tensor, counts_N: Tensor, config: Config) -> Tensor:
    """Assignments (N, K), rows summing to 1 where they count and to 0 where not, columns level."""
    share_NK = (score_NK / config.epsilon).exp() * counts_N[:, None]
    for _ in range(config.iterations):
        share_NK = share_NK / share_NK.sum(0)
        share_NK = share_NK / share_NK.sum(1, keepdim=True).clamp_min(1e-30)
    return share_NK
