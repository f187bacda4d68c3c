"""MoCo v3: find your own image in the teacher's batch. SimCLR's question with BYOL's teacher.

    x -> two crops -> student encoder -> head -> predictor -> which row of the teacher's B is mine?

Unlike v1 and v2 there is no queue: negatives are the other images of the batch, and only those of
the teacher's other view. Heads as the paper has them, deeper on ViT. A ViT's patch embedding is
trained here: the paper freezes it for stability at large batches, the benchmark does not.
Chen et al. 2021, https://arxiv.org/abs/2104.02057
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.methods import SSLMethod, Step
from medssl.methods._ema import Teacher
from medssl.methods._parts import bn_mlp, in_float32, is_vit, spread
from medssl.ranges import Count, Positive, Share

# B images, P projection


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    temperature: Positive = 0.2  # divides cosine similarity; lower looks harder at near negatives
    momentum: Share = 0.99  # teacher's memory at the start; 1 at the end
    hidden_dim: Count = 4096  # width of head and predictor
    out_dim: Count = 256  # P


class Method(SSLMethod):
    cost = 2.0

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        hidden, out = config.hidden_dim, config.out_dim
        depth = [hidden, hidden] if is_vit(encoder) else [hidden]
        norm = nn.BatchNorm1d(out, affine=False)
        head = nn.Sequential(bn_mlp(encoder.dim, *depth, out, bias=False), norm)
        self.student = nn.Sequential(self.encoder, head)
        self.teacher = Teacher(self.student, config.momentum)
        last = nn.BatchNorm1d(out, affine=False) if is_vit(encoder) else nn.Identity()
        self.predictor = nn.Sequential(bn_mlp(out, hidden, out, bias=False), last)

    def step(self, views: Sequence[Tensor]) -> Step:
        a_BP, b_BP = (self.predictor(self.student(x)) for x in views)
        a_teacher_BP, b_teacher_BP = (self.teacher(x) for x in views)
        t = self.config.temperature
        loss = contrast(a_BP, b_teacher_BP, t) + contrast(b_BP, a_teacher_BP, t)
        return Step(loss, {"spread": spread(a_teacher_BP)})

    def after_update(self, progress: float) -> None:
        self.teacher.follow(self.student, progress)


@in_float32
def contrast(query_BP: Tensor, key_BP: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each query against all keys, its own the positive; 2 T scales it as the paper."""
    cosine_BB = F.normalize(query_BP, dim=1) @ F.normalize(key_BP, dim=1).T
    own_B = torch.arange(len(query_BP), device=query_BP.device)
    return 2 * temperature * F.cross_entropy(cosine_BB / temperature, own_B)
