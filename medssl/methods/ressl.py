"""ReSSL: see the same likeness to other images, whatever was done to yours.

    x -> strong view -> student -> head -> softmax over the queue, T 0.1
         weak view   -> teacher -> head -> softmax over the queue, T 0.04: the target

Relations and not identities: no image is declared different from another, so two patients with one
disease may stay close. The weak view, a crop and a flip, is what keeps the target trustworthy.
Zheng et al. 2021, https://arxiv.org/abs/2107.09282; the loss is solo-learn's
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._ema import Teacher
from medssl.methods._parts import mlp, spread, unit
from medssl.methods._queue import Queue
from medssl.methods._solo import ressl_loss
from medssl.ranges import Count, Positive, Share

# B images, M keys in the queue, P projection


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    student_temperature: Positive = 0.1  # softer than the teacher's, or there is nothing to sharpen
    teacher_temperature: Positive = 0.04  # lower trusts only the nearest of the queue
    momentum: Share = 0.99  # teacher's memory at the start; 1 at the end
    queue: Count = 65536  # M, at most half the images; what relations are measured to
    hidden_dim: Count = 4096  # width of the head
    out_dim: Count = 256  # P


class Method(SSLMethod):
    views = "strong_weak"
    symmetric = False

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        head = mlp(encoder.dim, config.hidden_dim, config.out_dim)
        self.student = nn.Sequential(encoder, head)
        self.teacher = Teacher(self.student, config.momentum)
        self.queue = Queue(config.queue, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        strong, weak = views
        query_BP, key_BP = unit(self.student(strong)), unit(self.teacher(weak))
        self.queue.hold(key_BP)
        temperatures = self.config.student_temperature, self.config.teacher_temperature
        loss = ressl_loss(query_BP, key_BP, self.queue.keys_MP, *temperatures)
        return Step(loss, {"spread": spread(key_BP)})

    def after_update(self, progress: float) -> None:
        self.teacher.follow(self.student, progress)
        self.queue.rotate()
