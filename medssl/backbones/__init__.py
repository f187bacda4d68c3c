"""The contract of a backbone: `build(variant, image_size)` -> module, x_BCHW -> f_BD, with `.dim`.

`check(variant, image_size)` says what is wrong without importing torch. timm's modules, used from
here alone; whatever changes numbers (stem, patch size) is part of the variant's name.
"""

from typing import TYPE_CHECKING

from medssl import registry

if TYPE_CHECKING:  # planning asks `check`, and should not wait for torch
    from torch import nn


def build(name: str, image_size: int) -> "nn.Module":
    """The encoder of `name`, "resnet/18-3x3", freshly initialised from torch's global generator."""
    from medssl.backbones import _few_pixels

    built = registry.load("backbones", name).build(name.partition("/")[2], image_size)
    return _few_pixels.mend(built)
