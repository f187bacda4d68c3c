"""Which method tells apart cases that differ in structure alone? Drawn: needs no data, no network.

    "phantom/cells/train" -> seed -> each case's numbers, in unit coordinates -> pixels at any size

A class is a shape, a texture, a count or a presence. Stain, window, gain, place, angle and scale
are drawn without a look at the class, because augmentation changes those too. Nothing here comes
from a patient: a phantom shows that a pipeline works and methods differ, not which one to trust.

The name fixes the bytes, on every run and machine of the same numpy: pixels are float32 and only
see + - * / and sqrt, which IEEE rounds alike everywhere; `exp`, `x ** 0.7` or `@` would not be.

Test AUROC (macro) at 28 px. Raw pixels: a logistic probe, C chosen on val. Untrained: `none` with
resnet/18-3x3 and linear_probe, mean of two seeds, which a sweep shows.
`pytest tests/datasets/test_phantom.py -k room` bounds the first row.

               cells   fundus   lesions   organs   xray
    raw pixels  0.78     0.67      0.79     0.65   0.81
    untrained   0.75     0.72      0.77     0.70   0.83

lesions-elsewhere are lesions under another machine, for what is learned in one place and used in
another: raw pixels 0.74, and 0.73 where their probe learned on lesions.

SimCLR of a narrow 10-layer ResNet (32 to 256 channels, batch 64), one seed, epochs 0, 2, 5, 10:
cells 0.65, 0.68, 0.69, 0.70; lesions 0.71, 0.74, 0.72, 0.77 (on 400 other test images, so good to
0.05 at best).
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medssl import registry
from medssl.datasets import SPLITS, About, Images, statistics

# N images, B of them drawn at once, S pixels a side, G lattice points a side, C channels, K classes

SIZES = (28, 64, 128, 224)  # pixels
CHUNK = 50  # images drawn at once; part of the name's bytes: another number draws other cases
TURN = 6.2832  # radians


class Canvas:
    """B cases to draw; x grows to the right and y downwards, both from -1 to 1.

    Every draw from `rng` has a shape that does not know S, so a case is the same at every size.
    """

    def __init__(self, rng: np.random.Generator, names: Iterable[str], t_BK: np.ndarray, size: int):
        self.rng, self.names, self.t_BK, self.size = rng, list(names), t_BK, size
        at_S = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
        self.x, self.y = at_S[None, None, :], at_S[None, :, None]

    def by(self, otherwise: float = 0.0, **values: float) -> np.ndarray:
        """(B, 1, 1): each image's value by the name of its class."""
        value_K = np.float32([values.get(name, otherwise) for name in self.names])
        return (self.t_BK * value_K).sum(1)[:, None, None]

    def between(self, low: float, high: float) -> np.ndarray:
        """(B, 1, 1): one number for each image."""
        return self.rng.uniform(low, high, (len(self.t_BK), 1, 1)).astype(np.float32)

    def place(self, spread: float) -> tuple[np.ndarray, np.ndarray]:
        """(B, 1, 1) twice: a point at most `spread` from the middle, along x and along y."""
        return self.between(-spread, spread), self.between(-spread, spread)

    def side(self) -> np.ndarray:
        """(B, 1, 1): -1 or 1."""
        return np.where(self.between(-1, 1) < 0, np.float32(-1), np.float32(1))

    def colour(self, red: float, green: float, blue: float, spread: float) -> np.ndarray:
        """(B, 1, 1, 3): a colour as each image's stain or lamp has it."""
        shift_B3 = self.rng.uniform(-spread, spread, (len(self.t_BK), 3))
        return (
            (np.array([red, green, blue]) + shift_B3).clip(0, 1).astype(np.float32)[:, None, None]
        )

    def grain(self, bumps: int) -> np.ndarray:
        """(B, S, S) around 0, mostly within 1: smooth noise, `bumps` from side to side.

        Between lattice points the weights are scaled to one variance, or the lattice would show.
        """
        g_BGG = self.rng.uniform(-1, 1, (len(self.t_BK), bumps + 1, bumps + 1)).astype(np.float32)
        at_S = (np.arange(self.size) + 0.5) * (bumps / self.size)
        low_S = at_S.astype(int)
        w_S = (at_S - low_S).astype(np.float32)
        w_S = w_S * w_S * (3 - 2 * w_S)
        norm_S = np.sqrt(w_S * w_S + (1 - w_S) * (1 - w_S))
        near_S, far_S = (1 - w_S) / norm_S, w_S / norm_S
        g_BSG = g_BGG[:, low_S] * near_S[:, None] + g_BGG[:, low_S + 1] * far_S[:, None]
        return g_BSG[:, :, low_S] * near_S + g_BSG[:, :, low_S + 1] * far_S

    def frame(self, x, y, angle=0.0, width=1.0, height=1.0) -> tuple[np.ndarray, np.ndarray]:
        """(B, S, S) twice: coordinates in which an ellipse at (x, y) is the unit disc."""
        (cos, sin), dx, dy = turned(angle), self.x - x, self.y - y
        return (dx * cos + dy * sin) / width, (dy * cos - dx * sin) / height

    def ripple(self, amplitude: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(B, 1, 1) twice: the cosine and sine part of a wave on an outline, its phase drawn."""
        cos, sin = turned(self.between(0, TURN))
        return amplitude * cos, amplitude * sin

    def soft(self, depth: np.ndarray, width: float = 0.0) -> np.ndarray:
        """0 outside and 1 inside; the edge is `width` wide, and no sharper than pixels show."""
        t = np.clip(depth / max(width, 2.5 / self.size) + 0.5, 0, 1)
        return t * t * (3 - 2 * t)


def turned(angle: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine, by way of float64: machines differ in its last bit, which then is cut."""
    angle = np.float64(angle)
    return np.float32(np.cos(angle)), np.float32(np.sin(angle))


def length(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)


def depth(u: np.ndarray, v: np.ndarray, waves: dict[int, tuple] = {}) -> np.ndarray:  # noqa: B006
    """How deep inside a disc: 1 at its centre, 0 at its edge; {m: ripple} makes m bumps around."""
    r = length(u, v) + np.float32(1e-6)
    cos1, sin1 = u / r, v / r
    cos, sin, edge = cos1, sin1, np.float32(1)
    for m in range(1, max(waves, default=0) + 1):
        if m in waves:
            edge = edge + waves[m][0] * cos + waves[m][1] * sin
        cos, sin = cos * cos1 - sin * sin1, sin * cos1 + cos * sin1
    return edge - r


def over(image: np.ndarray, mask: np.ndarray, colour: np.ndarray | float) -> np.ndarray:
    """`colour` laid over the image where the mask is 1; grey (B, S, S) or colour (B, S, S, 3)."""
    return image + (colour - image) * (mask[..., None] if image.ndim == 4 else mask)


def cells(c: Canvas) -> np.ndarray:
    """A stained white blood cell among red ones: nucleus, lobes and granules are the class."""
    image = c.colour(0.95, 0.91, 0.92, 0.03) * np.ones((c.size, c.size, 1), np.float32)
    red, plasma = c.colour(0.85, 0.6, 0.6, 0.04), c.colour(0.78, 0.72, 0.85, 0.04)
    purple = c.colour(0.45, 0.3, 0.6, 0.04)
    for _ in range(4):  # red cells are pale in the middle
        d = depth(*c.frame(*c.place(1.2), 0, c.between(0.25, 0.4), c.between(0.25, 0.4)))
        image = over(image, c.soft(d, 0.25) * (1 - 0.6 * c.soft(d - 0.55, 0.5)), red)
    size = c.between(0.55, 0.95)
    u, v = c.frame(*c.place(0.3), c.between(0, TURN), size, size * c.between(0.87, 1.15))
    cell = c.soft(depth(u, v, {2: c.ripple(0.05), 3: c.ripple(0.04)}), 0.1)
    image = over(image, cell, plasma)
    lobes = c.by(1, basophil=2, eosinophil=2, neutrophil=4)
    apart = c.by(TURN / 2, neutrophil=TURN / 5)
    reach = c.by(0.12, basophil=0.3, eosinophil=0.4, neutrophil=0.5)
    radius = c.by(0.5, eosinophil=0.4, lymphocyte=0.7, monocyte=0.66, neutrophil=0.29)
    radius = radius * c.between(0.85, 1.15)
    nucleus = c.by(1, monocyte=-0.45) + length(u - 0.62, v)  # a bite makes a kidney of it
    parts = np.float32(-1)
    for i in range(4):
        cos, sin = turned(i * apart + c.between(-0.2, 0.2))
        lobe = radius - length(u - reach * cos, v - reach * sin)
        parts = np.maximum(parts, np.where(i < lobes, lobe, np.float32(-1)))
    nucleus = c.soft(np.minimum(nucleus, parts), 0.12)
    clumps = c.by(0.06, lymphocyte=0.3) * c.grain(14) + c.by(monocyte=0.3) * c.grain(24)
    image = over(image, nucleus * (0.8 + clumps), purple)
    fine, coarse = c.soft(c.grain(18) - 0.1, 0.5), c.soft(c.grain(12) - 0.15, 0.5)
    image = over(image, c.by(monocyte=0.6) * coarse * cell * (1 - nucleus), 0.95)  # vacuoles
    image = over(image, c.by(neutrophil=0.3) * fine * cell * (1 - nucleus), red)
    image = over(image, c.by(basophil=0.7) * fine * cell, purple * 0.8)
    image = over(image, c.by(eosinophil=0.7) * coarse * cell, plasma * 0.65)
    lamp, contrast = c.colour(0.86, 0.86, 0.86, 0.12), c.between(0.55, 1.2)[..., None]
    image = lamp * (0.6 + (image - 0.6) * contrast) * c.between(0.5, 1.2)[..., None]
    return image + 0.03 * c.grain(40)[..., None]


def organs(c: Canvas) -> np.ndarray:
    """A CT slice around one organ: its outline and its inside are the class, the window is not."""
    image = 0.45 + 0.15 * c.grain(3)
    for _ in range(4):  # the neighbours
        near = c.frame(*c.place(1), c.between(0, TURN), c.between(0.15, 0.5), c.between(0.15, 0.5))
        image = over(image, c.soft(depth(*near), 0.2), c.between(0.1, 0.9))
    size = c.between(0.45, 0.85)
    flat = c.by(0.85, liver=0.75, kidney=0.6, pancreas=0.42)
    u, v = c.frame(*c.place(0.3), c.between(0, TURN), size, size * flat)
    rough, lobed = c.by(0.02, heart=0.04, liver=0.1, lung=0.07, pancreas=0.05), c.by(pancreas=0.16)
    d = depth(u, v, {2: c.ripple(rough), 3: c.ripple(rough), 9: c.ripple(lobed)})
    d = np.minimum(d, length(u, v - 1) + c.by(1, kidney=-0.5, spleen=-0.8))
    rim, pelvis = c.soft(0.2 - np.abs(d - 0.12), 0.2), c.soft(d - 0.5, 0.3)
    chambers = c.soft(0.32 - length(np.abs(u) - 0.38, np.abs(v) - 0.38), 0.2)
    dots, branches = c.soft(c.grain(11) - 0.5, 0.3), c.soft(0.14 - np.abs(c.grain(7)), 0.2)
    inside = c.by(femur=1.2, kidney=0.8) * rim - c.by(kidney=0.9) * pelvis
    inside = inside + c.by(femur=0.6, pancreas=0.4) * c.grain(18) + c.by(heart=1) * chambers
    inside = inside + c.by(liver=0.9) * dots + c.by(lung=1.1) * branches
    inside = c.between(0.35, 0.6) + c.between(0.15, 0.3) * inside + 0.05 * c.grain(26)
    image = over(image, c.soft(d, 0.12), inside)
    return image * c.between(0.6, 1.3) + c.between(-0.15, 0.15) + 0.04 * c.grain(40)


def lesions(c: Canvas) -> np.ndarray:
    """Breast ultrasound: benign is smooth, bright behind; malignant is spiculated, dark behind."""
    size, (x, y) = c.between(0.4, 0.75), c.place(0.35)
    y = y - 0.1
    u, v = c.frame(x, y, c.between(-0.6, 0.6), size * c.between(0.9, 1.5), size)
    spikes = c.by(malignant=1) * c.between(0.11, 0.22)
    waves = {2: c.ripple(0.07), 3: c.ripple(0.05), 7: c.ripple(spikes), 9: c.ripple(spikes)}
    layers = c.grain(5) * 0.2 + c.soft(0.3 - np.abs(c.grain(3) + 2 * c.y + 1.4), 0.4) * 0.35
    image = 0.5 + layers + c.between(-0.3, 0.3) * c.y
    behind = (x, y, size, c.by(benign=0.4, malignant=-0.4) * c.between(0, 1))
    others = [(*c.place(1), c.between(0.1, 0.5), c.between(-0.4, 0.4)) for _ in range(2)]
    for at, top, wide, gain in (behind, *others):  # what else is there also shadows or enhances
        image = image * (1 + gain * c.soft(wide - np.abs(c.x - at), 0.3) * c.soft(c.y - top, 0.3))
    image = over(image, c.soft(depth(u, v, waves), 0.12), c.between(0.08, 0.3))
    speckle = length(c.grain(56), c.grain(56))
    return image * (0.5 + 0.5 * speckle) * c.between(0.6, 1.3)


def lesions_elsewhere(c: Canvas) -> np.ndarray:
    """The same lesions under another machine: compressed, coarser speckle, a bright near field."""
    image = np.sqrt(lesions(c).clip(0, 1)) * 0.6 + 0.15 - 0.15 * c.y
    return image * (0.7 + 0.3 * length(c.grain(14), c.grain(14)))


def xray(c: Canvas) -> np.ndarray:
    """A chest radiograph: shadows add up, and each of four findings is there or not."""
    zoom = c.between(0.8, 1.2)
    x, y = c.frame(*c.place(0.15), c.between(-0.15, 0.15), zoom, zoom * c.between(0.9, 1.1))
    wide, high = c.between(0.3, 0.38), c.between(0.65, 0.8)
    lungs = np.float32(0)
    for side in (-1, 1):
        waves = {2: (-0.1, 0), 3: (0.08 * side, 0)}
        lung = depth((x - side * 0.47) / wide, (y + 0.05) / high, waves)
        dome = c.between(0.35, 0.55) + 2.5 * (x - side * 0.42) * (x - side * 0.42) - y
        lungs = np.maximum(lungs, c.soft(np.minimum(lung, 2 * dome), 0.2))
    ribs = (y + 0.35 * x * x + c.between(0, 1)) * c.between(3.2, 4.2)
    ribs = np.abs(ribs - np.floor(ribs) - 0.5) * 2
    image = 0.75 + 0.1 * c.grain(3) - lungs * (0.5 - 0.1 * c.soft(ribs - 0.55, 0.5))
    wide, high = c.between(0.26, 0.34) + c.by(cardiomegaly=0.14), c.between(0.34, 0.44)
    image = over(image, c.soft(depth((x - 0.12) / wide, (y - 0.35) / high), 0.2), 0.8)  # heart
    image = over(image, c.soft(0.12 - np.abs(x), 0.1) * 0.6, 0.85)  # spine
    patch = (c.side() * x - c.between(0.4, 0.55)) / 0.3, (y - c.between(-0.4, 0.3)) / 0.35
    fluff = c.soft(depth(*patch), 1) * c.soft(c.grain(9) + 0.2, 0.8)
    spot = (c.side() * x - c.between(0.4, 0.6)) / 0.16, (y - c.between(-0.4, 0.2)) / 0.16
    image = image + c.by(opacity=0.4) * fluff + c.by(nodule=0.45) * c.soft(depth(*spot), 0.5)
    flank = c.side() * x
    level = y - c.between(0.2, 0.4) + 0.5 * (0.8 - flank)  # higher at the wall: a meniscus
    image = over(image, c.by(effusion=1) * c.soft(level, 0.2) * c.soft(flank - 0.1, 0.1), 0.75)
    return (image - 0.5) * c.between(0.8, 1.3) + c.between(0.4, 0.6) + 0.05 * c.grain(40)


def fundus(c: Canvas) -> np.ndarray:
    """A retina with disc and vessels: the grade is how many small dots it has, dark or bright."""
    ground = c.colour(0.75, 0.38, 0.2, 0.12)
    dark, bright = ground * np.float32([0.55, 0.35, 0.4]), np.float32([0.95, 0.85, 0.6])
    image = ground * (1 + 0.15 * c.grain(3))[..., None]
    side = c.side()
    u, v = c.frame(side * c.between(0.3, 0.6), c.between(-0.15, 0.15), c.between(-0.2, 0.2), side)
    for bend, away in ((-1, -1), (-1, 1), (1, -1), (1, 1)):  # vessels leave the disc in four arcs
        s = np.maximum(away * u, 0)
        off = np.abs(bend * v - np.sqrt(s * c.between(0.2, 0.5)) + 0.12 * s)
        image = over(image, 0.7 * c.soft(0.03 - off, 0.06) * c.soft(away * u, 0.05), dark)
    image = over(image, 0.5 * c.soft(0.3 - length(u + 0.8, v), 0.5), dark)  # macula
    image = over(image, c.soft(0.16 - length(u, v), 0.08), bright)  # disc
    count = c.by(none=0, mild=1, moderate=4, severe=8, proliferative=15)
    more = c.by(none=1, mild=3, moderate=4, severe=7, proliferative=10)
    count = count + np.floor(more * c.between(0, 1))
    for i in range(24):
        dot = c.between(0.04, 0.08) - length(*c.frame(*c.place(0.7)))
        colour = np.where(c.between(0, 1)[..., None] < 0.6, dark * 0.7, bright)
        image = over(image, c.soft(dot, 0.05) * (i < count), colour)
    image = image * c.between(0.7, 1.2)[..., None] + 0.03 * c.grain(40)[..., None]
    return image * c.soft(0.95 - length(c.x, c.y), 0.06)[..., None]


class Variant(NamedTuple):
    draw: Callable[[Canvas], np.ndarray]  # (B, S, S) or (B, S, S, 3), float32, cut to [0, 1]
    task: str
    share: dict[str, int]  # percent of the images, by the name of the class
    counts: tuple[int, int, int] = (2000, 300, 600)  # images in train, val, test
    channels: int = 1


CELLS = {"basophil": 12, "eosinophil": 18, "erythroblast": 14}
CELLS |= {"lymphocyte": 18, "monocyte": 16, "neutrophil": 22}
GRADES = {"none": 34, "mild": 18, "moderate": 20, "severe": 15, "proliferative": 13}
LESIONS = {"benign": 60, "malignant": 40}
ORGANS = {"bladder": 10, "femur": 10, "heart": 10, "kidney": 16}
ORGANS |= {"liver": 18, "lung": 14, "pancreas": 11, "spleen": 11}
FINDINGS = {"opacity": 30, "nodule": 15, "effusion": 20, "cardiomegaly": 25}

VARIANTS = {
    "cells": Variant(cells, "multi-class", CELLS, channels=3),
    "fundus": Variant(fundus, "ordinal-regression", GRADES, channels=3),
    "lesions": Variant(lesions, "binary-class", LESIONS, (1200, 300, 600)),
    "lesions-elsewhere": Variant(lesions_elsewhere, "binary-class", LESIONS, (1200, 300, 600)),
    "organs": Variant(organs, "multi-class", ORGANS),
    "xray": Variant(xray, "multi-label, binary-class", FINDINGS),
}


def names() -> list[str]:
    """The variants: "cells" of "phantom/cells"."""
    return list(VARIANTS)


def check(variant: str, size: int, root: Path | None = None) -> list[str]:
    """What is wrong with the request, a sentence each; `root` is for families that read files."""
    problems = []
    if variant not in VARIANTS:
        problems.append(f"no {variant!r} among phantoms: {registry.choose(variant, VARIANTS)}")
    if size not in SIZES:
        sizes = ", ".join(map(str, SIZES))
        problems.append(f"no phantom is drawn at {size} px: choose from {sizes}")
    return problems


def about(variant: str) -> About:
    """Channels, training images of the rarest class, classes; nothing is drawn but the labels."""
    one = VARIANTS[variant]
    t_NK = _labels(variant, "train")[1]
    return About(one.channels, int(t_NK.sum(0).min()), (one.task, tuple(one.share)), len(t_NK))


def load(variant: str, split: str, size: int, root: Path | None = None) -> Images:
    """`split` of the variant at `size` pixels; ValueError with what `check` finds."""
    problems = check(variant, size)
    if split not in SPLITS:
        problems.append(f"no split {split!r}: choose from {', '.join(SPLITS)}")
    if problems:
        raise ValueError("; ".join(problems))
    (task, classes), (mean_1C, std_1C) = about(variant).labels, _statistics(variant, size)
    x_NHWC, t_NK = (array.copy() for array in _drawn(variant, split, size))
    return Images(
        x_NHWC=x_NHWC,
        t_NK=t_NK,
        task=task,
        classes=classes,
        mean_DC=mean_1C.copy(),
        std_DC=std_1C.copy(),
        domain_N=np.zeros(len(x_NHWC), np.int64),
        md5=hashlib.md5(x_NHWC.tobytes() + t_NK.tobytes()).hexdigest(),
    )


@lru_cache(maxsize=64)
def _statistics(variant: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    return statistics(_drawn(variant, "train", size)[0])


@lru_cache(maxsize=2)  # the training split, and the one in use: 300 MB each at 224 px in colour
def _drawn(variant: str, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng, t_NK = _labels(variant, split)
    draw, share, count = VARIANTS[variant].draw, VARIANTS[variant].share, len(t_NK)
    x_NHWC = []
    for start in range(0, count, CHUNK):
        image = draw(Canvas(rng, share, t_NK[start : start + CHUNK], size))
        assert image.dtype == np.float32, "float64 rounds to other bytes: see the top"
        x_NHWC.append(np.rint(image.clip(0, 1) * 255).astype(np.uint8))
    return np.concatenate(x_NHWC).reshape(count, size, size, -1), t_NK


def _labels(variant: str, split: str) -> tuple[np.random.Generator, np.ndarray]:
    """t_NK, and the dice that go on to draw the images."""
    _, task, share, counts, _ = VARIANTS[variant]
    count, share_K = counts[SPLITS.index(split)], np.array(list(share.values())) / 100
    seed = hashlib.md5(f"phantom/{variant}/{split}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
    if task.startswith("multi-label"):
        t_NK = np.float32(rng.random((count, len(share_K))) < share_K)
    else:  # the shares to the image, in random order
        rank_N = (rng.permutation(count) + 0.5) / count
        t_NK = np.eye(len(share_K), dtype=np.float32)[np.searchsorted(share_K.cumsum(), rank_N)]
    return rng, t_NK
