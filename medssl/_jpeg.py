"""JPEG on the device: what a file of this quality makes of a batch, with no file and no loop.

    8 bits -> YCbCr, chroma halved -> 8 x 8 cosines -> rounded to a table -> and all the way back

Nothing is coded, because Huffman codes lose nothing. Everything that loses is libjpeg's, which PIL
writes with: its padding, 4:2:0, its rounding and its smooth upsampling. `tests/test_corruptions.py`
compares both. The tables are those of ITU-T T.81 (1992), annex K.1.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# B images, C channels, H W pixels, N blocks, P = 64 pixels or cosines of a block

LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
HALF = 0.5 + 1e-9  # sums of whole numbers are often exact halves: they go up in any order of adding


def jpeg(x_BCHW: Tensor, quality: int) -> Tensor:
    """Whole grey levels 0..255 (float64) as PIL reads them from a JPEG of `quality` 1..100."""
    if x_BCHW.shape[1] == 1:
        return coded(x_BCHW, table(LUMA, quality))
    r, g, b = x_BCHW.unbind(1)
    y = (0.299 * r + 0.587 * g + 0.114 * b + HALF).floor()
    cb = (-0.168736 * r - 0.331264 * g + 0.5 * b + 128 + HALF).floor()
    cr = (0.5 * r - 0.418688 * g - 0.081312 * b + 128 + HALF).floor()
    y = coded(y[:, None], table(LUMA, quality))[:, 0]
    small = coded(halved(torch.stack((cb, cr), 1)), table(CHROMA, quality))
    small = small[..., : (x_BCHW.shape[3] + 1) // 2]
    cb, cr = (doubled(small)[:, :, : y.shape[1], : y.shape[2]] - 128).unbind(1)
    rgb = y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb
    return (torch.stack(rgb, 1) + HALF).floor().clamp(0, 255)


def table(base: tuple[int, ...], quality: int) -> tuple[int, ...]:
    """Steps between the values that a cosine may have: the base at 50, all 1 at 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((step * percent + 50) // 100, 1), 255) for step in base)


def coded(x_BCHW: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Planes whose cosines were rounded to multiples of the steps."""
    B, C, H, W = x_BCHW.shape
    step_P = torch.tensor(steps, dtype=x_BCHW.dtype, device=x_BCHW.device)
    cosine_PP = cosines().to(x_BCHW.device)
    x_BCHW = F.pad(x_BCHW, (0, -W % 8, 0, -H % 8), mode="replicate")
    rows, columns = x_BCHW.shape[2] // 8, x_BCHW.shape[3] // 8
    x_NP = x_BCHW.view(B, C, rows, 8, columns, 8).transpose(3, 4).reshape(-1, 64)
    z_NP = (8 * (x_NP - 128) @ cosine_PP.T + HALF).floor() / 8  # libjpeg's have three binary digits
    z_NP = (z_NP.abs() / step_P + HALF).floor() * z_NP.sign()
    x_NP = ((z_NP * step_P) @ cosine_PP + 128 + HALF).floor().clamp(0, 255)
    x_BCHW = x_NP.view(B, C, rows, columns, 8, 8).transpose(3, 4).reshape(B, C, 8 * rows, -1)
    return x_BCHW[:, :, :H, :W]


@cache
def cosines() -> Tensor:
    """The orthonormal cosine transform of a block, (P, P): a row per cosine."""
    k = torch.arange(8, dtype=torch.float64)
    one_88 = torch.cos(k[:, None] * (2 * k + 1) * (math.pi / 16)) / 2
    one_88[0] /= math.sqrt(2)
    return torch.kron(one_88, one_88)


def halved(x_BCHW: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, and of the last column's as far as libjpeg has blocks of them.

    Halves go up in every other column.
    """
    H, W = x_BCHW.shape[2:]
    x_BCHW = F.pad(x_BCHW, (0, -W % 16, 0, H % 2), mode="replicate")
    up_W = torch.arange(x_BCHW.shape[3] // 2, device=x_BCHW.device) % 2 / 4 + 0.25
    return (F.avg_pool2d(x_BCHW, 2) + up_W + 1e-9).floor()


def doubled(x_BCHW: Tensor) -> Tensor:
    """Twice as high and wide, each pixel 3/4 its own, 1/4 its neighbour's in either axis."""
    x_BCHW = F.interpolate(x_BCHW, scale_factor=2, mode="bilinear")
    up_W = 0.5 - torch.arange(x_BCHW.shape[3], device=x_BCHW.device) % 2 / 16
    return (x_BCHW + up_W + 1e-9).floor()
