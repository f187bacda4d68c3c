"""MoCo v1: find your own image among thousands of earlier ones, kept in a queue.

    x -> two crops: a -> student -> linear -> which is mine, of the key and all the queue?
                    b -> teacher -> linear -> the key, and a place in the queue

The queue frees the number of negatives from the batch; the teacher is slow so that old keys compare
with new. Only the first view asks. The paper's shuffling of batch norm needs several GPUs.
He et al. 2019, https://arxiv.org/abs/1911.05722; the loss is solo-learn's
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._ema import Teacher
from medssl.methods._parts import spread, unit
from medssl.methods._queue import Queue
from medssl.methods._solo import moco_loss
from medssl.ranges import Count, Positive, Share

# B images, M keys in the queue, P projection


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong, and that of moco_v2 with it
    temperature: Positive = 0.07  # divides cosine similarity; lower looks harder at near negatives
    momentum: Share = 0.999  # teacher's memory, the same throughout
    queue: Count = 65536  # M, at most half the images; more negatives, older ones
    out_dim: Count = 128  # P


class Method(SSLMethod):
    preset = "moco_v1"
    symmetric = False

    def __init__(self, encoder: nn.Module, config: Config, head: nn.Module | None = None):
        super().__init__(encoder, config)
        self.student = nn.Sequential(encoder, head or nn.Linear(encoder.dim, config.out_dim))
        self.teacher = Teacher(self.student, config.momentum)
        self.queue = Queue(config.queue, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        query_BP, key_BP = unit(self.student(views[0])), unit(self.teacher(views[1]))
        self.queue.hold(key_BP)
        loss = moco_loss(query_BP, key_BP, self.queue.keys_MP.T, self.config.temperature)
        return Step(loss, {"spread": spread(key_BP)})

    def after_update(self, progress: float) -> None:
        self.teacher.follow(self.student, 0.0)
        self.queue.rotate()
