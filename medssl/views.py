"""What should two views of an image differ in? A method learns to ignore exactly that.

    uint8 batch -> equalise -> crop, resize, flip -> rotate, bend -> jitter -> grayscale -> blur
        -> solarise -> float views

A preset says how much of each, an arrangement which views a method gets: any goes with any.
`draw` rolls the dice, `apply` is a pure function of what fell. Shapes are static and numbers stay
on the device, so a CUDA graph can hold both; the global generators are left alone. What each step
does to pixels is in `_pixels.py`. The flip is one step with the crop, so it comes first, not last
as in torchvision pipelines; all that follows commutes with it (turning and bending by chance: to
the left is as likely as to the right).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl._pixels import blend_, blur, crop, equalise, solarise, turn_hue, warp

# B images; C channels, 1 (grey) or 3, first inside (CBHW); H W pixels; A attempts at a crop,
# G control points along a side, O the ops brightness, contrast, saturation (0, 1, 2)

ATTEMPTS = 10  # at a crop that fits, as torchvision; then the largest central one
POINTS = 7  # G: a bend is a cubic B-spline of four intervals along each side
TAILS = 4  # standard deviations of blur kept on each side: 8 pixels for sigma 2


@dataclass(frozen=True)
class View:
    equalise: float = 0.0  # share whose histogram is made flat, before the crop
    scale: tuple[float, float] = (0.08, 1.0)  # crop area / image area; a lower end zooms in further
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # crop width / height; (1, 1) distorts nothing
    flip: float = 0.5  # share mirrored left to right; 0 where the side of the body is the label
    rotate: float = 0.0  # degrees +- this; corners are filled with the mirrored image
    elastic: float = 0.0  # shares of the side +- this, how far control points move; 0.12 may fold
    jitter: float = 0.8  # share whose brightness, contrast, saturation and hue change, all four
    brightness: float = 0.4  # pixels are multiplied by 1 +- this
    contrast: float = 0.4  # distances to the image's mean grey are multiplied by 1 +- this
    saturation: float = 0.2  # distances to the pixel's own grey are multiplied by 1 +- this
    hue: float = 0.1  # turns +- this round the colour circle; 0.5 reaches every colour
    grayscale: float = 0.2  # share made grey, so that colour alone cannot tell images apart
    blur: float = 1.0  # share blurred
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels, whatever the image size; more hides texture
    solarise: float = 0.0  # share whose pixels from 128/255 up are inverted


PLAIN = View(jitter=0.0, grayscale=0.0, blur=0.0)  # crop and flip alone


def twice(view: View) -> tuple[View, View]:
    return view, view


# All crop bicubically, as BYOL, DINO and MAE do; MoCo and SwAV have torchvision's bilinear default.
PRESETS: dict[str, tuple[View, View]] = {
    # BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733), with solo-learn's numbers
    "asymmetric": (View(), View(blur=0.1, solarise=0.2)),
    # ours: the same without what a grey image does not have, and without solarise
    "grey": (
        View(saturation=0.0, hue=0.0, grayscale=0.0),
        View(saturation=0.0, hue=0.0, grayscale=0.0, blur=0.1),
    ),
    # VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906), with solo-learn's numbers
    "vicreg": twice(View(scale=(0.2, 1.0), blur=0.5, solarise=0.1)),
    # MoCo (He et al. 2020, https://arxiv.org/abs/1911.05722); there grayscale precedes the jitter
    "moco_v1": twice(View(scale=(0.2, 1.0), jitter=1.0, saturation=0.4, hue=0.4, blur=0.0)),
    # MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297); SimSiam's are the same
    "moco_v2": twice(View(scale=(0.2, 1.0), saturation=0.4, blur=0.5)),
    # SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882): SimCLR's colours, at full strength
    "swav": twice(
        View(scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
    ),
    # MAE (He et al. 2022, https://arxiv.org/abs/2111.06377)
    "mae": twice(replace(PLAIN, scale=(0.2, 1.0))),
    # In the manner of REMEDIS (Azizi et al. 2023, https://arxiv.org/abs/2205.09723) for radiology.
    # Crop, flip, brightness, contrast, blur and the share equalised are its released code's. The
    # paper names rotation and elastic deformation; we found no number for either (the code rotates
    # only in fine-tuning, by a flag that is 0, and lacks the deformation), so both are ours: 45
    # degrees, and pixels that move by 2% of the side (standard deviation), as in the U-Net paper.
    # Theirs bends and turns before the crop, and makes colour images grey to equalise them.
    "remedis": twice(
        View(
            equalise=0.5,
            rotate=45.0,
            elastic=0.07,
            brightness=0.8,
            contrast=0.8,
            saturation=0.0,
            hue=0.0,
            grayscale=0.0,
            blur=0.5,
        )
    ),
}


def make(
    arrangement: str,
    x_BCHW: Tensor,
    mean_BC: Tensor,
    std_BC: Tensor,
    preset: str,
    generator: torch.Generator,
) -> list[Tensor]:
    """Views (B, 3, H, W) float32 channels_last, normalised, of a uint8 batch with C = 1 or 3.

    mean_BC and std_BC belong to each image, for pixels in 0..1. All is on the generator's device.
    `arrangement` is one of the four functions below, and "multi_crop/4" has four local crops.
    Raises ValueError for an arrangement or a preset that does not exist.
    """
    name, slash, variant = arrangement.partition("/")
    if name not in ARRANGEMENTS:
        known = ", ".join(ARRANGEMENTS)
        raise ValueError(f"no {name!r} among view arrangements: choose from {known}")
    if slash and not (name == "multi_crop" and variant.isdecimal()):
        raise ValueError(
            f"no {arrangement!r} among view arrangements: only multi_crop has a variant, the "
            f"number of its local crops, as in 'multi_crop/6'"
        )
    count = [int(variant)] if slash else []
    return ARRANGEMENTS[name](x_BCHW, mean_BC, std_BC, preset, generator, *count)


def two_crops(
    x_BCHW: Tensor, mean_BC: Tensor, std_BC: Tensor, preset: str, generator: torch.Generator
) -> list[Tensor]:
    """The preset's two views."""
    return [look(view, x_BCHW, mean_BC, std_BC, generator) for view in pair(preset)]


def strong_weak(
    x_BCHW: Tensor, mean_BC: Tensor, std_BC: Tensor, preset: str, generator: torch.Generator
) -> list[Tensor]:
    """The preset's first view for a student; for its teacher, its crop and flip alone.

    With "asymmetric" these are solo-learn's for ReSSL (Zheng et al. 2021,
    https://arxiv.org/abs/2107.09282).
    """
    first, _ = pair(preset)
    weak = replace(PLAIN, scale=first.scale, ratio=first.ratio, flip=first.flip)
    return [look(view, x_BCHW, mean_BC, std_BC, generator) for view in (strong(first), weak)]


def multi_crop(
    x_BCHW: Tensor,
    mean_BC: Tensor,
    std_BC: Tensor,
    preset: str,
    generator: torch.Generator,
    local: int = 6,
) -> list[Tensor]:
    """Two global views of at least 0.14 of the area, then `local` small ones of at most that.

    Areas and sizes are SwAV's, which DINO shares for a ResNet (for a ViT it divides at 0.4). Local
    crops are DINO's too: the first view's colours, blur in one of two, no solarise. For "swav" they
    are SwAV's. They have 96/224 of the pixels along a side, rounded to a multiple of 4: 12 of 28.
    """
    first, second = pair(preset)
    whole = [replace(v, scale=(max(v.scale[0], 0.14), v.scale[1])) for v in (first, second)]
    small = replace(strong(first), scale=(0.05, 0.14))
    H, W = (max(1, round(side * 96 / 224 / 4)) * 4 for side in x_BCHW.shape[2:])
    return [look(view, x_BCHW, mean_BC, std_BC, generator) for view in whole] + [
        look(small, x_BCHW, mean_BC, std_BC, generator, (H, W)) for _ in range(local)
    ]


def masked(
    x_BCHW: Tensor, mean_BC: Tensor, std_BC: Tensor, preset: str, generator: torch.Generator
) -> list[Tensor]:
    """The preset's first view, and dice (B, 1, H, W) in 0..1 from which a method hides patches.

    One per pixel, because the patch is the method's affair: it takes every p-th. Rolled here and
    not in the method, so that a mask belongs to (seed, step) and stays beside its image.
    """
    B, _, H, W = x_BCHW.shape
    view_B3HW = look(pair(preset)[0], x_BCHW, mean_BC, std_BC, generator)
    return [view_B3HW, torch.rand(B, 1, H, W, generator=generator, device=generator.device)]


ARRANGEMENTS: dict[str, Callable[..., list[Tensor]]] = {
    f.__name__: f for f in (two_crops, strong_weak, multi_crop, masked)
}


def pair(preset: str) -> tuple[View, View]:
    if preset not in PRESETS:
        raise ValueError(f"no {preset!r} among view presets: choose from {', '.join(PRESETS)}")
    return PRESETS[preset]


def strong(view: View) -> View:
    """Blurred in one of two, if it is blurred at all, and never solarised."""
    return replace(view, blur=0.5 if view.blur else 0.0, solarise=0.0)


def look(
    view: View,
    x_BCHW: Tensor,
    mean_BC: Tensor,
    std_BC: Tensor,
    generator: torch.Generator,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """One view of each image, (height, width) = size, or as large as the image."""
    B, _, H, W = x_BCHW.shape
    with torch.autocast(x_BCHW.device.type, enabled=False):  # bfloat16 has fewer bits than pixels
        return apply(view, x_BCHW, mean_BC, std_BC, draw(view, B, H, W, generator), size)


class Drawn(NamedTuple):
    """What chance decided for each image; nothing here depends on pixels."""

    equalise_B: Tensor  # bool
    box_B4: Tensor  # top, left, height, width in whole pixels
    flip_B: Tensor  # bool
    angle_B: Tensor  # degrees; 0 changes nothing
    bend_B2GG: Tensor  # shares of the side, across and down; 0 changes nothing
    factor_BO: Tensor  # 1 changes nothing
    order_BO: Tensor  # which op is first, second, third
    turn_B: Tensor  # of hue, in turns; 0 changes nothing
    shuffle_B: Tensor  # a permutation; its quarters turn hue before op 1, 2, 3 and after all
    grayscale_B: Tensor  # bool
    sigma_B: Tensor  # pixels; 0 changes nothing
    solarise_B: Tensor  # bool


def draw(view: View, B: int, H: int, W: int, generator: torch.Generator) -> Drawn:
    """One call to the generator, of the same length for every recipe, whatever it leaves out."""
    sizes = (ATTEMPTS, ATTEMPTS, 2, 2 * POINTS**2, 3, 3, 4, 6)
    u = torch.rand(B, sum(sizes), generator=generator, device=generator.device)
    area_BA, ratio_BA, place_B2, bend_BN, factor_BO, order_BO, *rest = u.split(sizes, dim=1)
    equalise_B, flip_B, angle_B, jitter_B = rest[0].unbind(1)
    turn_B, shuffle_B, grayscale_B, blur_B, sigma_B, solarise_B = rest[1].unbind(1)
    strengths = (view.brightness, view.contrast, view.saturation)
    changes = [(2 * u_B - 1) * s for u_B, s in zip(factor_BO.unbind(1), strengths, strict=True)]
    jitter_B, blur_B = jitter_B < view.jitter, blur_B < view.blur
    return Drawn(
        equalise_B=equalise_B < view.equalise,
        box_B4=boxes(view, area_BA, ratio_BA, place_B2, H, W),
        flip_B=flip_B < view.flip,
        angle_B=(2 * angle_B - 1) * view.rotate,
        bend_B2GG=((2 * bend_BN - 1) * view.elastic).unflatten(1, (2, POINTS, POINTS)),
        factor_BO=1 + torch.stack(changes, 1) * jitter_B[:, None],
        order_BO=order_BO.argsort(1),
        turn_B=(2 * turn_B - 1) * view.hue * jitter_B,
        shuffle_B=shuffle_B.argsort(),
        grayscale_B=grayscale_B < view.grayscale,
        sigma_B=(view.sigma[0] + sigma_B * (view.sigma[1] - view.sigma[0])) * blur_B,
        solarise_B=solarise_B < view.solarise,
    )


def boxes(
    view: View, area_BA: Tensor, ratio_BA: Tensor, place_B2: Tensor, H: int, W: int
) -> Tensor:
    """Crops (B, 4) distributed as torchvision's RandomResizedCrop, from numbers in 0..1."""
    area_BA = H * W * (view.scale[0] + area_BA * (view.scale[1] - view.scale[0]))
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    ratio_BA = (low + ratio_BA * (high - low)).exp()
    h_BA, w_BA = (area_BA / ratio_BA).sqrt().round(), (area_BA * ratio_BA).sqrt().round()
    fits_BA = (h_BA > 0) & (h_BA <= H) & (w_BA > 0) & (w_BA <= W)
    # one more attempt that always fits: all of the image but what exceeds the ratios, centred
    last_h, last_w = min(H, round(W / view.ratio[0])), min(W, round(H * view.ratio[1]))
    first_B1 = F.pad(fits_BA.int(), (0, 1), value=1).argmax(1, keepdim=True)
    h_B1 = F.pad(h_BA, (0, 1), value=last_h).gather(1, first_B1)
    w_B1 = F.pad(w_BA, (0, 1), value=last_w).gather(1, first_B1)
    place_B2 = place_B2.masked_fill(first_B1 == ATTEMPTS, 0.4999)  # of a half pixel, the lower
    corner_B2 = (place_B2 * torch.cat((H - h_B1 + 1, W - w_B1 + 1), 1)).floor()
    return torch.cat((corner_B2, h_B1, w_B1), 1)


def apply(
    view: View,
    x_BCHW: Tensor,
    mean_BC: Tensor,
    std_BC: Tensor,
    drawn: Drawn,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The view (B, 3, *size) that `drawn` describes; `view` only says which steps to leave out.

    One channel stays one until the end: colour steps do nothing to grey, and the rest is per plane.
    """
    colour = x_BCHW.shape[1] == 3
    x_CBHW = x_BCHW.transpose(0, 1).contiguous()
    if view.equalise > 0:
        x_CBHW = equalise(x_CBHW, drawn.equalise_B)
    x_CBHW = crop(x_CBHW.float(), drawn.box_B4, drawn.flip_B, size or x_BCHW.shape[2:])
    if view.rotate > 0 or view.elastic > 0:
        x_CBHW = warp(x_CBHW, drawn.angle_B, drawn.bend_B2GG)
    if view.jitter > 0:
        jitter_(x_CBHW, drawn, hue=colour and view.hue > 0)
    if view.grayscale > 0 and colour:
        grey_B = drawn.grayscale_B.float()
        blend_(x_CBHW, 1 - grey_B, torch.zeros_like(grey_B), grey_B)
    if view.blur > 0:
        x_CBHW = blur(x_CBHW, drawn.sigma_B, math.ceil(TAILS * view.sigma[1]))
    if view.solarise > 0:
        x_CBHW = solarise(x_CBHW, drawn.solarise_B)
    x_CBHW = x_CBHW.sub_(mean_BC.T[:, :, None, None]).div_(std_BC.T[:, :, None, None])
    x_BCHW = x_CBHW.transpose(0, 1).expand(-1, 3, -1, -1)
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def jitter_(x_CBHW: Tensor, drawn: Drawn, hue: bool) -> None:
    """Brightness, contrast, saturation and hue in place, in each image's own order of the 24.

    Hue costs most and every image needs it once, so a quarter of the batch has it at each of the
    four places around the three ops (exactly a quarter where 4 divides B).
    """
    for place, quarter in enumerate(drawn.shuffle_B.tensor_split(4)):
        if hue:
            turned = turn_hue(x_CBHW[:, quarter], drawn.turn_B[quarter])
            x_CBHW.index_copy_(1, quarter, turned)
        if place < 3:
            op_B = drawn.order_BO[:, place]
            factor_B = drawn.factor_BO.gather(1, op_B[:, None])[:, 0]
            blend_(x_CBHW, factor_B, (1 - factor_B) * (op_B == 1), (1 - factor_B) * (op_B == 2))
