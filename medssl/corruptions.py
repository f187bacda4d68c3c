"""What a scanner, a microscope, a file does to an image: twenty-one corruptions, five severities.

    8 bits in 0..1 -> float64 -> one family at one severity, by each image's own dice -> 8 bits

The families are MedMNIST-C's, every line is ours. What a reader would get wrong:

- Lengths are shares of the side, written as pixels of 224. Where that does not do the same to a
  small image, strengths have a table by size: a severity is to do the same *damage*, the root mean
  square of the change over the contrast of the image. `tests/test_corruptions.py` holds all
  families to that. Blurs act on frequencies, where a third of a pixel is no special case.
- Noise is of pixels, as strong at each size. It is not what is left of the noise of 224 px in an
  image made smaller, which would be eight times weaker at 28 px.
- A severity is the same on every dataset. MedMNIST-C has five numbers for each dataset; ours are
  those of most of its sets, or lie between.
- Dice belong to (seed, family, index of the image): neither the batch nor the severity changes
  them, so a severity adds to the one before, and all encoders see the same images.
- Grey stays grey, in three channels too. There MedMNIST-C draws noise for each channel, and adds to
  the saturation of white. Ours multiplies the distance to grey, and leaves grey images alone.
- float64, because averages of grey levels are often exact halves, and an image must not depend on
  the batch that it was in by the last bit of a sum.

Di Salvo et al. 2024, https://arxiv.org/abs/2406.17536
"""

import hashlib
import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl import _jpeg
from medssl._pixels import LUMA

# B images; C channels, 1 (grey) or 3; H W pixels, S of a side; N numbers of one image; M blocks
# along a side; L grey levels; P shares of 1; G dots of letters

SEVERITIES = (1, 2, 3, 4, 5)
VALUES = {"cpu": 2**18, "cuda": 2**24}  # of images at a time; sets memory and speed alone
WHOLE = 224  # pixels, in which lengths are written
HALF = 0.5 + 1e-6  # in grey levels: halves go up, however a sum was added


def corrupt(x_BCHW: Tensor, family: str, severity: int, index_B: Tensor, seed: int = 0) -> Tensor:
    """Images in 0..1 of 8 bits, corrupted, and again in 0..1 of 8 bits; severity is 1 to 5.

    `index_B` says which images of their set these are: it is what their dice are drawn by.
    """
    change, parts = FAMILIES[family], []
    size = max(1, VALUES[x_BCHW.device.type] // x_BCHW[0].numel())
    for given, index in zip(x_BCHW.split(size), index_B.split(size), strict=True):
        x = given.double()
        y = change(x, severity, Dice(index, seed, family))
        if x.shape[1] == 3:
            grey_B = (x == x[:, :1]).flatten(1).all(1)
            y = torch.where(grey_B[:, None, None, None], y[:, :1], y)
        y = (255 * y + HALF).floor().clamp(0, 255) / 255
        parts.append(y.to(given.dtype))
    return torch.cat(parts)


class Dice:
    """Numbers that belong to an image alone: SplitMix64 (Steele et al. 2014), a key per image.

    It counts instead of going on from a state, so all numbers of all images are had at once.
    """

    def __init__(self, index_B: Tensor, *of: object):
        digest = hashlib.sha256(" ".join(map(str, of)).encode()).digest()
        self.key_B = mixed(mixed(index_B.long()) + int.from_bytes(digest[:8], signed=True))
        self.drawn = 0

    def bits(self, *shape: int) -> Tensor:
        """(B, *shape) int64, the next ones."""
        count = math.prod(shape)
        place_N = torch.arange(1, count + 1, device=self.key_B.device) + self.drawn
        self.drawn += count
        return mixed(self.key_B[:, None] + place_N * -0x61C8864680B583EB).unflatten(1, shape)

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float64 in [0, 1)."""
        return (self.bits(*shape) >> 11 & 2**53 - 1).double() * 2**-53

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float64, of 2^16 values that are equally likely."""
        return quantiles(self.key_B.device)[self.bits(*shape) >> 48 & 0xFFFF]


def mixed(z: Tensor) -> Tensor:
    """int64 with all bits stirred; products are cut to 64 bits, and shifts bring in zeros."""
    z = (z ^ (z >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return z ^ (z >> 31 & 2**33 - 1)


@cache
def quantiles(device: torch.device) -> Tensor:
    share_P = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(share_P).to(device)


# Strengths by size. At 224 px they are MedMNIST-C's, or near; below, they were solved for the same
# damage as at 224 px, mean of five phantoms. The largest size given is for all above it.
BLOCKS = {28: (27, 25, 23, 19, 14), 64: (38, 34, 28, 22, 16)}  # along the side
QUALITY = {  # of libjpeg
    28: (96, 94, 88, 81, 70),
    64: (93, 88, 74, 50, 25),
    128: (79, 60, 27, 16, 10),
    224: (50, 30, 15, 10, 7),
}
SIGMA = {28: (2.3, 2.8, 3.8, 4.7, 6.5), 64: (1.5, 2, 3, 4, 6)}  # pixels of 224, and so below
RADIUS = {28: (4.6, 5.7, 7.6, 9.3, 10.8), 64: (3, 4, 6, 8, 10)}
LENGTH = {28: (12, 16, 19, 26, 33), 64: (8, 12, 16, 24, 32)}


def solved(table: dict[int, tuple[float, ...]], x_BCHW: Tensor, severity: int) -> float:
    """The strength at the size of the table that is nearest, by ratio."""
    nearest = min(table, key=lambda size: abs(math.log(size / side(x_BCHW))))
    return table[nearest][severity - 1]


# --- files ---------------------------------------------------------------------------------------


def pixelate(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Means of blocks, which need not be whole pixels, at the pixels whose centres they hold."""
    for axis in (2, 3):
        size = x_BCHW.shape[axis]
        count = min(size - 1, solved(BLOCKS, x_BCHW, severity))
        block_MS = overlap(x_BCHW.new_zeros(1), size / count, count, size)[0] * (count / size)
        mine_S = ((torch.arange(size, device=x_BCHW.device) + 0.5) * (count / size)).long()
        x_BCHW = block_MS @ x_BCHW if axis == 2 else x_BCHW @ block_MS.T
        x_BCHW = x_BCHW.index_select(axis, mine_S)
    return x_BCHW


def jpeg(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Written to a file and read again, by libjpeg's arithmetic."""
    return _jpeg.jpeg((255 * x_BCHW).round(), solved(QUALITY, x_BCHW, severity)) / 255


# --- sensors -------------------------------------------------------------------------------------


def gaussian_noise(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    return x_BCHW + (0.04, 0.08, 0.12, 0.18, 0.26)[severity - 1] * dice.normal(*x_BCHW.shape[1:])


def speckle_noise(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Normal, in proportion to the pixel: ultrasound's, and a pixel of 0 has none."""
    share = (0.05, 0.15, 0.2, 0.35, 0.45)[severity - 1]
    return x_BCHW * (1 + share * dice.normal(*x_BCHW.shape[1:]))


def impulse_noise(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """A share of the values is black or white, as often one as the other."""
    share = (0.01, 0.03, 0.06, 0.09, 0.17)[severity - 1]
    u_BCHW = dice.uniform(*x_BCHW.shape[1:])
    return x_BCHW.masked_fill(u_BCHW < share / 2, 0).masked_fill(u_BCHW >= 1 - share / 2, 1)


def shot_noise(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Counted photons, so many where the image is white: Poisson."""
    photons = (60, 25, 18, 10, 5)[severity - 1]
    count_LP = counts(photons, x_BCHW.device)
    level_BCHW = (255 * x_BCHW).round().long()
    return count_LP[level_BCHW, dice.bits(*x_BCHW.shape[1:]) >> 52 & 0xFFF].double() / photons


@cache
def counts(photons: int, device: torch.device) -> Tensor:
    """(256, 2^12) uint8: equally likely counts of photons for each grey level."""
    count_N = torch.arange(4 * photons + 20, dtype=torch.float64)
    rate_L1 = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    log_LN = torch.xlogy(count_N, rate_L1) - rate_L1 - torch.lgamma(count_N + 1)
    share_LP = ((torch.arange(2**12, dtype=torch.float64) + 0.5) / 2**12).repeat(256, 1)
    return torch.searchsorted(log_LN.exp().cumsum(1), share_LP).to(device, torch.uint8)


# --- lenses --------------------------------------------------------------------------------------


def gaussian_blur(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    sigma = solved(SIGMA, x_BCHW, severity) / WHOLE * side(x_BCHW)
    return spread(x_BCHW, lambda y, x: torch.exp(-2 * (math.pi * sigma) ** 2 * (y * y + x * x)))


def defocus_blur(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """A point becomes a disc."""
    radius = solved(RADIUS, x_BCHW, severity) / WHOLE * side(x_BCHW)

    def passed(y: Tensor, x: Tensor) -> Tensor:
        turns = 2 * math.pi * radius * (y * y + x * x).sqrt().clamp_min(1e-9)
        return 2 * torch.special.bessel_j1(turns) / turns

    return spread(x_BCHW, passed)


def motion_blur(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """A point becomes a line in any direction, as long on either side, so that nothing moves."""
    length = solved(LENGTH, x_BCHW, severity) / WHOLE * side(x_BCHW)
    angle_B111 = math.pi * dice.uniform(1, 1, 1)
    sin, cos = angle_B111.sin(), angle_B111.cos()
    return spread(x_BCHW, lambda y, x: torch.sinc(length * (y * sin + x * cos)))


def spread(x_BCHW: Tensor, passed: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Blurred: what is passed of each frequency, in waves per pixel down and across.

    Mirrored at the border; no blur here reaches further than an eighth of the side.
    """
    H, W = x_BCHW.shape[2:]
    pad = min(math.ceil(max(H, W) / 8), min(H, W) - 1)
    x_BCHW = F.pad(x_BCHW, (pad, pad, pad, pad), mode="reflect")
    size = x_BCHW.shape[2:]
    like = {"dtype": x_BCHW.dtype, "device": x_BCHW.device}
    share = passed(torch.fft.fftfreq(size[0], **like)[:, None], torch.fft.rfftfreq(size[1], **like))
    x_BCHW = torch.fft.irfft2(torch.fft.rfft2(x_BCHW) * share, s=size)
    return x_BCHW[:, :, pad : pad + H, pad : pad + W]


def zoom_blur(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """The mean while zooming into the centre."""
    most, steps = (1.11, 1.16, 1.21, 1.26, 1.31)[severity - 1], 12
    return sum(zoomed(x_BCHW, 1 + (most - 1) * i / (steps - 1)) for i in range(steps)) / steps


def zoomed(x_BCHW: Tensor, by: float) -> Tensor:
    """Bilinear, about the centre."""
    y, x = (2 * at / size for at, size in zip(pixels(x_BCHW), x_BCHW.shape[2:], strict=True))
    place_HW2 = torch.stack(torch.broadcast_tensors(x / by, y / by), 2)
    return F.grid_sample(x_BCHW, place_HW2.expand(len(x_BCHW), -1, -1, -1), align_corners=False)


# --- exposure and stain --------------------------------------------------------------------------


def brightness_up(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    return x_BCHW * (1.1, 1.2, 1.3, 1.4, 1.5)[severity - 1]


def brightness_down(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    return x_BCHW * (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]


def contrast_up(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    mean_B111 = luma(x_BCHW).mean((2, 3), keepdim=True)
    return mean_B111 + (x_BCHW - mean_B111) * (1.1, 1.2, 1.3, 1.4, 1.6)[severity - 1]


def contrast_down(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    mean_B111 = luma(x_BCHW).mean((2, 3), keepdim=True)
    return mean_B111 + (x_BCHW - mean_B111) * (0.9, 0.8, 0.7, 0.6, 0.4)[severity - 1]


def saturate(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    grey_B1HW = luma(x_BCHW)
    return grey_B1HW + (x_BCHW - grey_B1HW) * (1.2, 1.4, 1.6, 1.8, 2.2)[severity - 1]


def gamma_corr_up(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Darker in between, black and white as they were."""
    return x_BCHW ** (1.1, 1.2, 1.3, 1.4, 1.6)[severity - 1]


def gamma_corr_down(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Brighter in between."""
    return x_BCHW ** (0.9, 0.8, 0.7, 0.6, 0.4)[severity - 1]


def luma(x_BCHW: Tensor) -> Tensor:
    if x_BCHW.shape[1] == 1:
        return x_BCHW
    r, g, b = x_BCHW.split(1, 1)
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


# --- what lies on the slide, the skin, the lens --------------------------------------------------


def stain_deposit(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """As many dark blots as the severity, 8 to 18 pixels of 224 in radius, with wavy outlines."""
    y, x = places(x_BCHW)
    for _ in range(severity):
        u_B9 = dice.uniform(9)[:, :, None, None].unbind(1)
        dy, dx = y - 0.9 * (u_B9[0] - 0.5), x - 0.9 * (u_B9[1] - 0.5)
        turn_BHW = torch.atan2(dy, dx) / (2 * math.pi)
        waves = [
            (u_B9[k + 1] - 0.5) / k * torch.cos(2 * math.pi * (k * turn_BHW + u_B9[k + 4]))
            for k in (2, 3, 4)
        ]
        radius_BHW = (8 + 10 * u_B9[2]) / WHOLE * (1 + sum(waves))
        inside_BHW = covered(radius_BHW - (dy * dy + dx * dx).sqrt(), x_BCHW)
        x_BCHW = x_BCHW * (1 - 0.9 * inside_BHW[:, None])
    return x_BCHW


def bubble(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Translucent white discs with a rim."""
    count, largest = ((9, 7), (12, 9), (15, 12), (18, 15), (22, 18))[severity - 1]
    y, x = places(x_BCHW)
    shown_BHW = torch.ones((), dtype=x_BCHW.dtype, device=x_BCHW.device)
    for _ in range(count):
        u_B3 = dice.uniform(3)[:, :, None, None].unbind(1)
        near_BHW = (y - u_B3[0] + 0.5) ** 2 + (x - u_B3[1] + 0.5) ** 2
        for opacity, rim in ((0.3, 0), (0.2, 2)):
            radius_B11 = (3 + (largest - 3) * u_B3[2] + rim) / WHOLE
            # (r^2 - d^2) / 2r is the depth r - d where it matters, which is at the edge
            inside_BHW = covered((radius_B11**2 - near_BHW) / (2 * radius_B11), x_BCHW)
            shown_BHW = shown_BHW * (1 - opacity * inside_BHW)
    return 1 - (1 - x_BCHW) * shown_BHW[:, None]


def black_corner(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """A dermatoscope: black outside a circle, whose radius falls; MedMNIST-C's rises at the end."""
    y, x = places(x_BCHW)
    radius = (1.1, 1.05, 1.0, 0.95, 0.9)[severity - 1] / 2
    return x_BCHW * covered(radius - (y * y + x * x).sqrt(), x_BCHW)


def characters(x_BCHW: Tensor, severity: int, dice: Dice) -> Tensor:
    """Words of 3 to 8 letters in any colour, 16 pixels of 224 high: at 28 px no longer readable."""
    C, H, W = x_BCHW.shape[1:]
    font = torch.tensor(FONT, dtype=x_BCHW.dtype, device=x_BCHW.device)
    dot, most = 16 / 5 / WHOLE * side(x_BCHW), 8
    for _ in range((1, 2, 3, 4, 6)[severity - 1]):
        u_BN = dice.uniform(6 + most)
        written_B1N1 = torch.arange(most, device=u_BN.device) < 3 + 6 * u_BN[:, 2:3]
        word_BGNG = font[(u_BN[:, 6:] * len(FONT)).long()] * written_B1N1[:, :, None, None]
        word_BGG = word_BGNG.transpose(1, 2).flatten(2)  # 5 dots high, 4 times as wide as letters
        rows_BGH = overlap(u_BN[:, 0] * (H - 5 * dot), dot, 5, H)
        columns_BGW = overlap(u_BN[:, 1] * (W - 4 * most * dot), dot, 4 * most, W)
        ink_B1HW = (rows_BGH.mT @ word_BGG @ columns_BGW)[:, None]
        x_BCHW = x_BCHW + (u_BN[:, 3 : 3 + C, None, None] - x_BCHW) * ink_B1HW
    return x_BCHW


# 2 to 9 and letters, five rows of three dots: a row is an octal digit
ROWS = (
    "7174771317557117471774757711117575775717257556565674447655567464774644745575575572227"
    "1115755655444475775575744656557222255557555525525555222"
)
DOTS = [[int(row) >> k & 1 for k in (2, 1, 0)] + [0] for row in ROWS]
FONT = [DOTS[i : i + 5] for i in range(0, len(DOTS), 5)]


def side(x_BCHW: Tensor) -> int:
    return min(x_BCHW.shape[2:])


def pixels(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of pixels (H, 1) and (W,), from the middle of the image."""
    H, W = x_BCHW.shape[2:]
    like = {"dtype": x_BCHW.dtype, "device": x_BCHW.device}
    down_H1 = torch.arange(H, **like)[:, None] - (H - 1) / 2
    return down_H1, torch.arange(W, **like) - (W - 1) / 2


def places(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The same in sides."""
    y, x = pixels(x_BCHW)
    return y / side(x_BCHW), x / side(x_BCHW)


def covered(depth: Tensor, x_BCHW: Tensor) -> Tensor:
    """The share of each pixel that lies inside, by its centre's depth in sides."""
    return (depth * side(x_BCHW) + 0.5).clamp(0, 1)


def overlap(start_B: Tensor, length: float, count: int, size: int) -> Tensor:
    """(B, count, size): pixels of each that fall into `count` lengths one after another."""
    pixel_S = torch.arange(size, dtype=start_B.dtype, device=start_B.device)
    step_N1 = torch.arange(count, dtype=start_B.dtype, device=start_B.device)[:, None] * length
    from_BN1 = start_B[:, None, None] + step_N1
    return (torch.minimum(pixel_S + 1, from_BN1 + length) - pixel_S.maximum(from_BN1)).clamp_min(0)


# --- which belongs to what -----------------------------------------------------------------------

FAMILIES: dict[str, Callable[[Tensor, int, Dice], Tensor]] = {
    "pixelate": pixelate,
    "jpeg": jpeg,
    "gaussian_noise": gaussian_noise,
    "speckle_noise": speckle_noise,
    "impulse_noise": impulse_noise,
    "shot_noise": shot_noise,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "gaussian_blur": gaussian_blur,
    "brightness_up": brightness_up,
    "brightness_down": brightness_down,
    "contrast_up": contrast_up,
    "contrast_down": contrast_down,
    "saturate": saturate,
    "stain_deposit": stain_deposit,
    "bubble": bubble,
    "black_corner": black_corner,
    "characters": characters,
    "gamma_corr_up": gamma_corr_up,
    "gamma_corr_down": gamma_corr_down,
}
FILE = ("pixelate", "jpeg")
NOISE = ("gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise")
BRIGHTNESS, CONTRAST = ("brightness_up", "brightness_down"), ("contrast_up", "contrast_down")
GAMMA, CAMERA = ("gamma_corr_up", "gamma_corr_down"), ("defocus_blur", "motion_blur")
SLIDE = (*FILE, *CAMERA, *BRIGHTNESS, *CONTRAST, "saturate", "stain_deposit", "bubble")
SKIN = (*FILE, *NOISE, *CAMERA, "zoom_blur", *BRIGHTNESS, *CONTRAST, "black_corner", "characters")
RADIOGRAPH = (*FILE, *NOISE, "gaussian_blur", *BRIGHTNESS, *CONTRAST, *GAMMA)
COLOUR = (*FILE, *NOISE, *CAMERA, *BRIGHTNESS, *CONTRAST, "saturate")  # ours: of any camera
BY_DATASET: dict[str, tuple[str, ...]] = {  # MedMNIST-C's
    "pathmnist": SLIDE,
    "bloodmnist": SLIDE,
    "dermamnist": SKIN,
    "retinamnist": (*FILE, *NOISE[:2], *CAMERA, "brightness_down", "contrast_down"),
    "tissuemnist": (*FILE, "impulse_noise", "gaussian_blur", *BRIGHTNESS, *CONTRAST),
    "octmnist": (*FILE, "speckle_noise", *CAMERA, "contrast_down"),
    "breastmnist": (*FILE, "speckle_noise", "motion_blur", *BRIGHTNESS, "contrast_down"),
    "chestmnist": RADIOGRAPH,
    "pneumoniamnist": RADIOGRAPH,
    "organamnist": RADIOGRAPH,
    "organcmnist": RADIOGRAPH,
    "organsmnist": RADIOGRAPH,
}


def belonging(dataset: str, channels: int) -> tuple[str, ...]:
    """The families of a dataset: MedMNIST-C's, of a union those that all of its members have.

    Of any other set: those of radiographs where it is grey, those of any camera where it is not.
    """
    family, _, variant = dataset.partition("/")
    other = RADIOGRAPH if channels == 1 else COLOUR
    lists = [
        BY_DATASET.get(m, other) if family == "medmnist" else other for m in variant.split("+")
    ]
    return tuple(name for name in lists[0] if all(name in one for one in lists))
