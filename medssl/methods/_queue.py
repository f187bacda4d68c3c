"""The last M keys, a ring that grows no older than it must."""

import torch
from torch import Tensor, nn

from medssl.methods._parts import unit


class Queue(nn.Module):
    """Keys (M, P) of unit length. `hold` this step's keys, then `rotate` them in after the update.

    Two steps and not one, because the backward pass still needs the keys that the loss was made of.
    It starts with random directions, which are as far from every image as anything can be.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("keys_MP", unit(torch.randn(size, dim)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # keys rotated in so far

    def hold(self, key_BP: Tensor) -> None:
        self.held_BP = unit(key_BP.detach())[-len(self.keys_MP) :]

    @torch.no_grad()
    def rotate(self) -> None:
        B, M = len(self.held_BP), len(self.keys_MP)
        place_B = (self.seen + torch.arange(B, device=self.seen.device)) % M
        self.keys_MP.index_copy_(0, place_B, self.held_BP)
        self.seen.add_(B)
