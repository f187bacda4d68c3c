"""A teacher that follows its student."""

import copy
import math

import torch
from torch import nn


class Teacher(nn.Module):
    """An averaged copy of `student`. It has no gradients; call `follow` once after each update."""

    def __init__(self, student: nn.Module, momentum: float):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.momentum = momentum  # at progress 0; rises to 1 by a half cosine

    @torch.no_grad()
    def forward(self, x_BCHW):
        return self.module(x_BCHW)

    @torch.no_grad()
    def follow(self, student: nn.Module, progress: float) -> None:
        keep = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        torch._foreach_lerp_(list(self.module.parameters()), list(student.parameters()), 1 - keep)
