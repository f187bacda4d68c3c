"""BYOL: predict what a slowly moving average of yourself sees in the other view. No negatives.

    x -> two crops -> student encoder -> head -> predictor  ~  teacher encoder -> head

What stops collapse is the predictor together with the teacher's lag; watch `spread`. Each view is a
pass of its own, with its own batch statistics, as in the paper.
Grill et al. 2020, https://arxiv.org/abs/2006.07733; the loss is solo-learn's
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._ema import Teacher
from medssl.methods._parts import bn_mlp, spread
from medssl.methods._solo import byol_loss
from medssl.ranges import Count, Share

# B images, P projection


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    momentum: Share = 0.99  # teacher's memory at the start; 1 at the end
    hidden_dim: Count = 4096  # width of the head
    predictor_dim: Count = 8192  # width of the predictor
    out_dim: Count = 256  # P


class Method(SSLMethod):
    cost = 2.0

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        self.head = bn_mlp(encoder.dim, config.hidden_dim, config.out_dim)
        self.student = nn.Sequential(self.encoder, self.head)
        self.teacher = Teacher(self.student, config.momentum)
        self.predictor = bn_mlp(config.out_dim, config.predictor_dim, config.out_dim)

    def step(self, views: Sequence[Tensor]) -> Step:
        a_BP, b_BP = (self.predictor(self.student(x)) for x in views)
        a_teacher_BP, b_teacher_BP = (self.teacher(x) for x in views)
        loss = byol_loss(a_BP, b_teacher_BP) + byol_loss(b_BP, a_teacher_BP)
        return Step(loss, {"spread": spread(a_teacher_BP)})

    def after_update(self, progress: float) -> None:
        self.teacher.follow(self.student, progress)
