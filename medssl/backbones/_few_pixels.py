"""A convolution that meets one to four pixels: on a CPU a product of matrices, and always right.

    at most 2 x 2 pixels -> x_B(HWC) @ its taps (HWC)(hwO) -> the same numbers, up to rounding

The last stages of a ResNet see so few at 28 and 64 px. oneDNN is slow there: 3 x 3 on one pixel,
512 channels, batch 256 in bfloat16 takes ten times what the one tap does that meets it.

It is wrong, too, where the input is narrower than the stride: in bfloat16 (torch 2.15) the weight
gradient of a dense convolution is then whatever was in memory, now and then NaN. A crop of 12
pixels gets there. What is no plain convolution, and so keeps its own forward pass, is given a row
and a column of zeros at the end: where padding is half of the kernel on either side the next rows
are padding already, so that no number changes.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B images, C channels in and O out, H rows and W columns in, h and w out

FEW = 2  # rows, and columns


class Conv2d(nn.Conv2d):
    """torch's, but for how few pixels are computed on a CPU."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        rows, columns = x_BCHW.shape[-2:]
        (up, left), (down, right) = self.padding, self.stride
        few = rows <= min(FEW, up + 1) and columns <= min(FEW, left + 1)  # all meet only taps
        if not few or x_BCHW.device.type != "cpu":
            return super().forward(widened(x_BCHW, self.stride))
        # where in the kernel the first pixel is, for each pixel that comes out
        places = product(range(up, up - rows, -down), range(left, left - columns, -right))
        taps = [self.weight[:, :, i : i + rows, j : j + columns] for i, j in places]
        met = torch.cat([tap.permute(0, 2, 3, 1).flatten(1) for tap in taps])
        bias = None if self.bias is None else self.bias.repeat(len(taps))
        y = F.linear(x_BCHW.permute(0, 2, 3, 1).flatten(1), met, bias)
        h, w = -(-rows // down), -(-columns // right)
        return y.view(len(y), h, w, self.out_channels).permute(0, 3, 1, 2)


def mend(encoder: nn.Module) -> nn.Module:
    """The same module and weights, its convolutions made fast and safe where pixels are few."""
    for part in encoder.modules():
        if not isinstance(part, nn.Conv2d) or not _padded_by_half(part):
            continue
        if type(part) is nn.Conv2d and part.groups == 1 and part.dilation == (1, 1):
            part.__class__ = Conv2d
        elif max(part.stride) > 1:
            part.register_forward_pre_hook(_widen)
    return encoder


def widened(x_BCHW: Tensor, stride: tuple[int, int]) -> Tensor:
    """With zeros at the end, until a side is as long as the stride."""
    rows, columns = (max(0, s - n) for s, n in zip(stride, x_BCHW.shape[-2:], strict=True))
    return F.pad(x_BCHW, (0, columns, 0, rows)) if rows or columns else x_BCHW


def _widen(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return widened(inputs[0], conv.stride), *inputs[1:]


def _padded_by_half(conv: nn.Conv2d) -> bool:
    """Not so: those that pad by themselves, in their forward pass, and those that never pad."""
    half = tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return max(half) > 0 and conv.padding == half and conv.padding_mode == "zeros"
