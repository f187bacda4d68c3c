"""A convolution that meets fewer pixels than its stride: oneDNN leaves its gradient unwritten.

    one pixel, stride 2 -> a row and a column of zeros at the end -> the same numbers

In bfloat16 on a CPU (torch 2.15) the weight gradient of a dense convolution is whatever was in
memory, now and then NaN, where its input is narrower than its stride. A crop of 12 pixels gets
there in the last stage of a ResNet. Where padding is half of the kernel on either side, the next
rows are padding already: written out up to the stride they change no number, and oneDNN is right.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def widen(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook: zeros at the end, until a side is as long as the stride."""
    x_BCHW, *rest = inputs
    rows, columns = (max(0, s - n) for s, n in zip(conv.stride, x_BCHW.shape[-2:], strict=True))
    return (F.pad(x_BCHW, (0, columns, 0, rows)), *rest) if rows or columns else inputs


def mend(encoder: nn.Module) -> nn.Module:
    """The same module and weights, its convolutions of stride 2 and more made safe."""
    for part in encoder.modules():
        if isinstance(part, nn.Conv2d) and _padded_by_half(part) and max(part.stride) > 1:
            part.register_forward_pre_hook(widen)
    return encoder


def _padded_by_half(conv: nn.Conv2d) -> bool:
    """Not so: those that pad by themselves, in their forward pass, and those that never pad."""
    half = tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return max(half) > 0 and conv.padding == half and conv.padding_mode == "zeros"
