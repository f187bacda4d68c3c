"""DINO: agree with a slow teacher on a sharp distribution over K learned prototypes.

    x -> two crops (and small local ones) -> student -> head -> softmax over K, T 0.1
         two crops                        -> teacher -> head -> minus centre, softmax, T 0.04

No negatives and no predictor. Centring forbids one prototype from winning always, sharpening
forbids all from being equal: each alone collapses, so look at both before changing one. Prototypes
rest at first, or they run away from features that mean nothing yet.
Schedules are shares of the training: the reference's 1 and 50 of 400 epochs. The teacher's memory
is per update, and meant for many: after 1,000 the default has moved a fifth of the way.
Caron et al. 2021, https://arxiv.org/abs/2104.14294
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._ema import Teacher
from medssl.methods._parts import cosine, gated, is_vit, spread, swapped, together
from medssl.ranges import Count, Positive, Share, Whole

# B images, V views of which 2 are whole crops, K prototypes, P bottleneck


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    student_temperature: Positive = 0.1  # higher than the teacher's, or there is nothing to sharpen
    teacher_temperature: Positive = 0.07  # at the end of its warm-up; ViT: from the start
    first_temperature: Positive = 0.04  # at the start of the warm-up: sharper is safer
    warmup: Share = 0.125  # share of the training in which the temperature rises; ViT: none
    frozen: Share = 0.0025  # share of the training in which the prototypes rest
    momentum: Share = 0.9995  # teacher's memory at the start; 1 at the end
    centre_momentum: Share = 0.9  # memory of the centre, in steps
    local_crops: Whole = 0  # small crops for the student alone; each costs a small forward pass
    hidden_dim: Count = 2048  # width of the head
    bottleneck_dim: Count = 256  # P
    prototypes: Whole = 0  # K; 0: 4,096, and 65,536 on a ViT, as the reference has it


class Method(SSLMethod):
    cost = 2.0

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        vit = is_vit(encoder)
        if config.local_crops:
            self.views = f"multi_crop/{config.local_crops}"
        count = config.prototypes or (65536 if vit else 4096)
        self.student = nn.Sequential(encoder, Head(encoder.dim, config, count, free=vit))
        self.teacher = Teacher(self.student, config.momentum)
        self.warmup = 0.0 if vit else config.warmup
        self.register_buffer("centre_K", torch.zeros(count))
        self.register_buffer("temperature", torch.tensor(self.sharpness(0.0)))

    def step(self, views: Sequence[Tensor]) -> Step:
        student_VBK, teacher_2BK = together(self.student, views), together(self.teacher, views[:2])
        self.held_K = teacher_2BK.mean((0, 1))
        target_2BK = ((teacher_2BK - self.centre_K) / self.temperature).softmax(2)
        loss = swapped(target_2BK, student_VBK, self.config.student_temperature)
        used = (-target_2BK.mean((0, 1)).clamp_min(1e-9).log() * target_2BK.mean((0, 1))).sum()
        return Step(loss, {"spread": spread(teacher_2BK[0]), "prototypes": used.exp()})

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        self.teacher.follow(self.student, progress)
        self.centre_K.lerp_(self.held_K, 1 - self.config.centre_momentum)
        self.temperature.fill_(self.sharpness(progress))
        self.student[1].open.fill_(progress >= self.config.frozen)

    def sharpness(self, progress: float) -> float:
        """The teacher's temperature, a straight line over the warm-up."""
        first, last = self.config.first_temperature, self.config.teacher_temperature
        return last if progress >= self.warmup else first + (last - first) * progress / self.warmup


class Head(nn.Module):
    """f_BD -> cosine to each prototype (B, K); `free` ones also have a length of their own."""

    def __init__(self, dim: int, config: Config, count: int, free: bool):
        super().__init__()
        hidden = config.hidden_dim
        self.mlp = nn.Sequential(
            *(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()),
            nn.Linear(hidden, config.bottleneck_dim),
        )
        self.prototypes_KP = nn.Linear(config.bottleneck_dim, count, bias=False).weight
        self.length_K = nn.Parameter(torch.ones(count), requires_grad=free)
        self.register_buffer("open", torch.zeros(()))  # 1 once the prototypes may move

    def forward(self, f_BD: Tensor) -> Tensor:
        cosine_BK = cosine(self.mlp(f_BD), gated(self.prototypes_KP, self.open))
        return cosine_BK * gated(self.length_K, self.open)
