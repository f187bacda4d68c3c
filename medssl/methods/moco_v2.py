"""MoCo v2: MoCo v1 with what SimCLR had found: a hidden layer in the head, blur, a softer softmax.

The queue, the slow teacher and the one-sided question are v1's, whose class this is.
Chen et al. 2020, https://arxiv.org/abs/2003.04297; the loss is solo-learn's
"""

from dataclasses import dataclass

from torch import nn

from medssl.methods import moco_v1
from medssl.methods._parts import mlp
from medssl.ranges import Count, Positive, Share


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    temperature: Positive = 0.2  # divides cosine similarity; lower looks harder at near negatives
    momentum: Share = 0.999  # teacher's memory, the same throughout
    queue: Count = 65536  # M, at most half the images; more negatives, older ones
    hidden_dim: Count = 2048  # width of the head
    out_dim: Count = 128  # P


class Method(moco_v1.Method):
    preset = "moco_v2"

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config, mlp(encoder.dim, config.hidden_dim, config.out_dim))
