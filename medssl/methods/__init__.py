"""The contract of a pretraining method: one file, one `Config`, one `Method`.

`step` takes views and nothing else. A method that wanted labels could not be written.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Step(NamedTuple):
    loss: Tensor  # (), minimised by the trainer
    logs: dict[str, Tensor]  # (), detached; averaged on the device and read once per epoch


class SSLMethod(nn.Module):
    """What a method owes the trainer. `encoder` survives pretraining; the rest is scaffolding."""

    encoder: nn.Module  # x_BCHW -> f_BD, with .dim = D
    views: str = "two_crops"  # an arrangement of views.py, or "multi_crop/6"
    preset: str = "asymmetric"  # of views.py, its paper's; what a sweep's views="own" means
    backbones: tuple[str, ...] = ()  # families that it can train; (): all
    symmetric: bool = True  # the first two views may trade places
    forwards: bool = True  # the encoder runs by its own forward, not block by block
    steady: tuple[str, ...] = ()  # parts whose learning rate the schedule leaves alone
    cost: float = 1.0  # passes through the encoder per view of full size, with or without gradient

    def __init__(self, encoder: nn.Module, config: object):
        super().__init__()
        self.encoder, self.config = encoder, config

    def step(self, views: Sequence[Tensor]) -> Step:
        raise NotImplementedError

    def after_update(self, progress: float) -> None:
        """After each optimiser step: move a teacher, rotate a queue. `progress` is in [0, 1]."""
