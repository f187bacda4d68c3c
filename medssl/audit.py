"""Is what a model is judged on among what it has learned from?

    images of one split, images of another -> how many of the other are in the first, or nearly

A score on such images rewards memory. Nearly: as 16 x 16 greys they differ by less than a fifth of
the image's own contrast (root mean square against standard deviation, brightness apart), which is
what another compression, a caliper's mark or a slightly moved frame makes of an image. Of
BreastMNIST's 156 test images 58 have such a twin in the training split (28 px), of PneumoniaMNIST's
624 none: there the nearest pair differs by 0.26. An image turned, mirrored or cropped anew is not
found, nor another photograph of the same lesion, of which DermaMNIST is known to have some in two
splits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.datasets import Images

SPLITS = (("test", "train"), ("val", "train"), ("test", "val"))  # whose images, held by which
VERSION = 2  # raise it when other images are counted
NEAR = 0.2  # of an image's standard deviation
SIDE = 16  # pixels, to which images are shrunk
CHUNK = 1024  # images; sets memory, never the answer

# N images looked for, M images looked among, B of the N, G grey levels, H W C as everywhere


class Overlap(NamedTuple):
    """Of the images looked for."""

    same: int  # to the last bit there, grey as grey or as colour
    near: int  # nearly there, and not the same
    images: int


def overlap(known: Images, asked: Images, device: torch.device | None = None) -> Overlap:
    """How many images of `asked` are in `known`: the same, and nearly."""
    there = set(_bytes(known.x_NHWC))
    same_N = torch.tensor([image in there for image in _bytes(asked.x_NHWC)])
    near_N = torch.zeros(len(asked), dtype=torch.bool)
    m_MG = small(known.x_NHWC, device)
    for start in range(0, len(asked), CHUNK):
        x_BG = small(asked.x_NHWC[start : start + CHUNK], device)
        far_B = torch.full((len(x_BG),), torch.inf, device=device)
        for part_MG in m_MG.split(16 * CHUNK):
            far_B = far_B.minimum(torch.cdist(x_BG, part_MG).amin(1))
        near_N[start : start + CHUNK] = (far_B < NEAR * x_BG.norm(dim=1)).cpu()
    return Overlap(int(same_N.sum()), int((near_N & ~same_N).sum()), len(asked))


def _bytes(x_NHWC: np.ndarray) -> Iterator[bytes]:
    """Each image's pixels, those of a grey one as a coloured file has them."""
    for x_HWC in x_NHWC:
        yield (x_HWC if x_HWC.shape[2] == 3 else x_HWC.repeat(3, axis=2)).tobytes()


def small(x_NHWC: np.ndarray, device: torch.device | None = None) -> Tensor:
    """Greys of the shrunk images less the image's own mean, (N, G) float32."""
    parts = []
    for start in range(0, len(x_NHWC), CHUNK):
        x_BHWC = torch.from_numpy(x_NHWC[start : start + CHUNK]).to(device)
        grey_BG = F.adaptive_avg_pool2d(x_BHWC.float().mean(3)[:, None] / 255, SIDE).flatten(1)
        parts.append(grey_BG - grey_BG.mean(1, keepdim=True))
    return torch.cat(parts)
