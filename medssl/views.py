"""What should two views of an image differ in? A method learns to ignore exactly that.

    uint8 batch -> crop, resize, flip -> jitter -> grayscale -> blur -> solarise -> two float views

The flip is one step with the crop, so it comes first, not last as in torchvision pipelines; all
that follows commutes with it. What each step does to pixels is in `_pixels.py`.
`draw` rolls the dice, `apply` is a pure function of what fell. Shapes are static and numbers stay
on the device, so a CUDA graph can hold both; the global generators are left alone.
The recipe is solo-learn's "asymmetric", from BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl._pixels import blend_, blur, crop, solarise, turn_hue

# B images; C channels, 1 (grey) or 3, first inside (CBHW); H W pixels; A attempts at a crop,
# O the ops brightness, contrast, saturation (0, 1, 2)

ATTEMPTS = 10  # at a crop that fits, as torchvision; then the largest central one
TAILS = 4  # standard deviations of blur kept on each side: 8 pixels for sigma 2


@dataclass(frozen=True)
class View:
    scale: tuple[float, float] = (0.08, 1.0)  # crop area / image area; a lower end zooms in further
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # crop width / height; (1, 1) distorts nothing
    flip: float = 0.5  # share mirrored left to right; 0 where the side of the body is the label
    jitter: float = 0.8  # share whose brightness, contrast, saturation and hue change, all four
    brightness: float = 0.4  # pixels are multiplied by 1 +- this
    contrast: float = 0.4  # distances to the image's mean grey are multiplied by 1 +- this
    saturation: float = 0.2  # distances to the pixel's own grey are multiplied by 1 +- this
    hue: float = 0.1  # turns +- this round the colour circle; 0.5 reaches every colour
    grayscale: float = 0.2  # share made grey, so that colour alone cannot tell images apart
    blur: float = 1.0  # share blurred
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels, whatever the image size; more hides texture
    solarise: float = 0.0  # share whose pixels from 128/255 up are inverted


PRESETS: dict[str, tuple[View, ...]] = {
    "asymmetric": (View(), View(blur=0.1, solarise=0.2)),
    "grey": (
        View(saturation=0.0, hue=0.0, grayscale=0.0),
        View(saturation=0.0, hue=0.0, grayscale=0.0, blur=0.1),
    ),
}


class Drawn(NamedTuple):
    """What chance decided for each image; nothing here depends on pixels."""

    box_B4: Tensor  # top, left, height, width in whole pixels
    flip_B: Tensor  # bool
    factor_BO: Tensor  # 1 changes nothing
    order_BO: Tensor  # which op is first, second, third
    turn_B: Tensor  # of hue, in turns; 0 changes nothing
    shuffle_B: Tensor  # a permutation; its quarters turn hue before op 1, 2, 3 and after all
    grayscale_B: Tensor  # bool
    sigma_B: Tensor  # pixels; 0 changes nothing
    solarise_B: Tensor  # bool


def two_crops(
    x_BCHW: Tensor, mean_BC: Tensor, std_BC: Tensor, preset: str, generator: torch.Generator
) -> list[Tensor]:
    """Two views (B, 3, H, W) float32 channels_last, normalised, of a uint8 batch with C = 1 or 3.

    mean_BC and std_BC belong to each image, for pixels in 0..1. All is on the generator's device.
    Raises ValueError for a preset that does not exist.
    """
    if preset not in PRESETS:
        raise ValueError(f"no {preset!r} among view presets: choose from {', '.join(PRESETS)}")
    B, _, H, W = x_BCHW.shape
    with torch.autocast(x_BCHW.device.type, enabled=False):  # bfloat16 has fewer bits than pixels
        return [
            apply(view, x_BCHW, mean_BC, std_BC, draw(view, B, H, W, generator))
            for view in PRESETS[preset]
        ]


def draw(view: View, B: int, H: int, W: int, generator: torch.Generator) -> Drawn:
    """One call to the generator, of the same length for every recipe, whatever it leaves out."""
    u = torch.rand(B, 2 * ATTEMPTS + 16, generator=generator, device=generator.device)
    sizes = (ATTEMPTS, ATTEMPTS, 2, 3, 3, 8)
    area_BA, ratio_BA, place_B2, factor_BO, order_BO, rest = u.split(sizes, dim=1)
    flip_B, jitter_B, turn_B, shuffle_B, grayscale_B, blur_B, sigma_B, solarise_B = rest.unbind(1)
    strengths = (view.brightness, view.contrast, view.saturation)
    changes = [(2 * u_B - 1) * s for u_B, s in zip(factor_BO.unbind(1), strengths, strict=True)]
    jitter_B, blur_B = jitter_B < view.jitter, blur_B < view.blur
    return Drawn(
        box_B4=boxes(view, area_BA, ratio_BA, place_B2, H, W),
        flip_B=flip_B < view.flip,
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


def apply(view: View, x_BCHW: Tensor, mean_BC: Tensor, std_BC: Tensor, drawn: Drawn) -> Tensor:
    """The view (B, 3, H, W) that `drawn` describes; `view` only says which steps to leave out.

    One channel stays one until the end: colour steps do nothing to grey, and the rest is per plane.
    """
    colour = x_BCHW.shape[1] == 3
    x_CBHW = x_BCHW.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    x_CBHW = crop(x_CBHW, drawn.box_B4, drawn.flip_B, x_BCHW.shape[2:])
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
