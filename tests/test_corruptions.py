"""Corruptions: an image's own dice, the same damage at every size, and families that are what they
are called: against PIL, torchvision, and the moments of noise and blur."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageEnhance
from scipy import stats
from torch import Tensor

from medssl import corruptions, ranges
from medssl._jpeg import jpeg
from medssl.corruptions import BY_DATASET, FAMILIES, SEVERITIES, Dice, belonging, corrupt
from medssl.datasets import medmnist, phantom

# B images, C channels, H W pixels

NAMES = list(FAMILIES)
SIZES = (28, 64, 128, 224)
RANDOM = ["gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise", "motion_blur"]
RANDOM += ["stain_deposit", "bubble", "characters"]
MIRRORED = ["defocus_blur", "gaussian_blur", "zoom_blur", "black_corner", "contrast_up", "saturate"]
LEVEL = 1 / 255


def drawn(name: str, size: int, n: int = 6, seed: int = 7) -> Tensor:
    """Phantoms that the strengths were not solved on."""
    variant = phantom.VARIANTS[name]
    t_BK = np.eye(len(variant.share), dtype=np.float32)[np.arange(n) % len(variant.share)]
    x = variant.draw(phantom.Canvas(np.random.default_rng(seed), variant.share, t_BK, size))
    x_BHWC = np.rint(x.clip(0, 1) * 255).reshape(n, size, size, -1)
    return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).float() / 255


def noise(B: int, C: int, H: int, W: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (B, C, H, W or H), generator=generator) / 255


def plain(level: float, size: int = 224, C: int = 1) -> Tensor:
    """One image of one level, in float64: what the families themselves take."""
    return torch.full((1, C, size, size), level, dtype=torch.float64)


def raw(family: str, x_BCHW: Tensor, severity: int) -> Tensor:
    """Neither cut nor rounded."""
    return FAMILIES[family](x_BCHW.double(), severity, Dice(torch.arange(len(x_BCHW)), 0, family))


# --- what all of them owe ------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (5, 3, 28, 28), (3, 3, 20, 33), (4, 1, 8, 8)])
def test_images_of_any_size_stay_images_of_8_bits(family, shape):
    x_BCHW = noise(*shape)
    before = x_BCHW.clone()
    for severity in SEVERITIES:
        y_BCHW = corrupt(x_BCHW, family, severity, torch.arange(len(x_BCHW)))
        assert y_BCHW.shape == x_BCHW.shape
        assert y_BCHW.dtype == torch.float32
        assert torch.equal(y_BCHW, (y_BCHW * 255).round() / 255)
        assert 0 <= y_BCHW.min() <= y_BCHW.max() <= 1
        assert torch.equal(y_BCHW, x_BCHW) == (family == "saturate" and shape[1] == 1)
    assert torch.equal(x_BCHW, before)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 28), (3, 40)])
def test_neither_the_batch_nor_the_order_changes_an_image(family, channels, size, monkeypatch):
    """To the last pixel. Half of the images are noise, half of two levels: exact halves abound."""
    x_BCHW = torch.cat((noise(20, channels, size), (noise(20, channels, size) > 0.5) / 255))
    index_B, order = torch.arange(40) + 1000, torch.randperm(40)
    whole = corrupt(x_BCHW, family, 3, index_B)
    shuffled = corrupt(x_BCHW[order], family, 3, index_B[order])
    assert torch.equal(shuffled, whole[order])
    monkeypatch.setitem(corruptions.VALUES, "cpu", 7 * x_BCHW[0].numel())
    assert torch.equal(corrupt(x_BCHW, family, 3, index_B), whole)
    alone = [corrupt(x, family, 3, i) for x, i in zip(x_BCHW.split(1), index_B.split(1))]  # noqa: B905
    assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("family", NAMES)
def test_dice_are_an_images_own_and_the_seeds(family):
    x_BCHW = noise(1, 3, 28).expand(2, -1, -1, -1)
    first, second = corrupt(x_BCHW, family, 3, torch.tensor([4, 5]))
    other = corrupt(x_BCHW, family, 3, torch.tensor([4, 5]), seed=1)[0]
    again = corrupt(x_BCHW, family, 3, torch.tensor([4, 5]))[0]
    assert torch.equal(first, again)
    assert torch.equal(first, second) == torch.equal(first, other) == (family not in RANDOM)


@pytest.mark.parametrize("family", NAMES)
def test_grey_stays_grey_and_is_the_same_in_three_channels(family):
    grey_B1HW, colour_B3HW = noise(3, 1, 28), noise(3, 3, 28)
    index_B = torch.arange(6)
    x_B3HW = torch.cat((grey_B1HW.expand(-1, 3, -1, -1), colour_B3HW))
    y_B3HW = corrupt(x_B3HW, family, 4, index_B)
    assert torch.equal(y_B3HW[:3], corrupt(grey_B1HW, family, 4, index_B[:3]).expand(-1, 3, -1, -1))
    assert torch.equal(y_B3HW[3:], corrupt(colour_B3HW, family, 4, index_B[3:]))


def test_what_does_nothing_does_nothing(monkeypatch):
    x_BCHW = (torch.arange(256) / 255).view(1, 1, 16, 16)
    monkeypatch.setitem(FAMILIES, "nothing", lambda x, severity, dice: x)
    assert torch.equal(corrupt(x_BCHW, "nothing", 1, torch.zeros(1)), x_BCHW)


@pytest.mark.parametrize("off", [-1e-9, 0, 1e-9])
def test_halves_go_up_however_a_sum_was_added(off, monkeypatch):
    monkeypatch.setitem(FAMILIES, "half", lambda x, severity, dice: x + (0.5 + off) / 255)
    x_BCHW = (torch.arange(255) / 255).view(1, 1, 15, 17)
    y_BCHW = corrupt(x_BCHW, "half", 1, torch.zeros(1))
    assert torch.equal((255 * y_BCHW).round().flatten(), torch.arange(1.0, 256))


@pytest.mark.parametrize("family", MIRRORED)
def test_what_has_no_side_is_the_same_in_a_mirror(family):
    x_BCHW = noise(4, 3, 28)
    index_B = torch.arange(4)
    for axes in ((2,), (3,), (2, 3)):
        mirrored = corrupt(x_BCHW.flip(axes), family, 3, index_B).flip(axes)
        assert (mirrored - corrupt(x_BCHW, family, 3, index_B)).abs().max() <= 1.01 * LEVEL


# --- severities ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases() -> dict[int, list[Tensor]]:
    """The same cases at four sizes, three kinds grey and two in colour."""
    return {size: [drawn(name, size, 2) for name in phantom.VARIANTS] for size in SIZES}


def damage(x_BCHW: Tensor, family: str, severity: int) -> float:
    """Root mean square of the change over the contrast, mean of the images."""
    y_BCHW = corrupt(x_BCHW, family, severity, torch.arange(len(x_BCHW)))
    change_B = (y_BCHW - x_BCHW).square().mean((1, 2, 3)).sqrt()
    return (change_B / x_BCHW.std((1, 2, 3))).mean().item()


@pytest.mark.parametrize("family", NAMES)
def test_damage_grows_with_severity_and_is_comparable_at_every_size(family, cases):
    found = {}
    for size, kinds in cases.items():
        chosen = [x for x in kinds if family != "saturate" or x.shape[1] == 3]
        if family == "black_corner":
            chosen = chosen[:1] + chosen[2:]  # a fundus has black corners
        of_kinds = [[damage(x, family, s) for s in SEVERITIES] for x in chosen]
        found[size] = np.exp(np.log(of_kinds).mean(0))
        assert (np.diff(found[size]) > 0).all(), (size, found[size])
        assert found[size][0] > 0.01, "the first severity is to be seen"
    for size in SIZES:
        ratio = found[size] / found[224]
        assert (ratio > 0.66).all(), (size, ratio)
        assert (ratio < 1.3).all(), (size, ratio)


@pytest.mark.parametrize("family", RANDOM)
def test_a_severity_adds_to_the_one_before(family):
    """The same dice: what is hit at one severity is hit at the next."""
    x_BCHW = drawn("cells", 64, 2)
    hit = [corrupt(x_BCHW, family, s, torch.arange(2)) != x_BCHW for s in SEVERITIES]
    share = [(a & ~b).float().mean() / a.float().mean() for a, b in pairwise(hit)]
    assert max(share) < 0.15


# --- dice ----------------------------------------------------------------------------------------


def test_dice_are_splitmix64():
    """Steele, Lea and Flood's generator, in whole numbers of any length."""
    cut, dice = 2**64 - 1, Dice(torch.tensor([3, 2**40]), 0, "a")

    def step(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & cut
        z = (z ^ z >> 27) * 0x94D049BB133111EB & cut
        return z ^ z >> 31

    assert step(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first number of seed 0
    theirs = [
        [step(int(key) % 2**64 + n * 0x9E3779B97F4A7C15 & cut) for n in range(1, 7)]
        for key in dice.key_B
    ]
    ours = torch.cat((dice.bits(2), dice.bits(2, 2).flatten(1)), 1)
    assert [[z % 2**64 for z in row] for row in ours.tolist()] == theirs


def test_numbers_are_uniform_and_normal_and_those_of_neighbours_have_nothing_in_common():
    u_BN = Dice(torch.arange(40), 0, "a").uniform(5000)
    assert u_BN.dtype == torch.float64
    assert stats.kstest(u_BN.flatten().numpy(), "uniform").pvalue > 0.01
    z_BN = Dice(torch.arange(40), 0, "b").normal(5000)
    assert stats.kstest(z_BN.flatten().numpy(), "norm").pvalue > 0.01
    for a_BN in (u_BN, z_BN):
        assert (torch.corrcoef(a_BN) - torch.eye(40)).abs().max() < 5 / math.sqrt(5000)
        assert (torch.corrcoef(a_BN.T[:100]) - torch.eye(100)).abs().max() < 0.75
    assert len(Dice(torch.arange(100_000), 0, "a").bits(1).unique()) == 100_000


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [1, 3])
def test_moments_of_gaussian_noise(C):
    for severity, sigma in zip(SEVERITIES, (0.04, 0.08, 0.12, 0.18, 0.26), strict=True):
        added = raw("gaussian_noise", plain(0.4, C=C), severity) - 0.4
        assert added.std().item() == pytest.approx(sigma, rel=0.02)
        assert added.mean().item() == pytest.approx(0, abs=0.01 * sigma)


def test_speckle_is_in_proportion_to_the_pixel():
    for level in (0.0, 0.2, 0.8):
        added = raw("speckle_noise", plain(level), 4) - level
        assert added.std().item() == pytest.approx(0.35 * level, rel=0.02)


def test_impulses_are_black_as_often_as_white_and_leave_the_rest():
    for severity, share in zip(SEVERITIES, (0.01, 0.03, 0.06, 0.09, 0.17), strict=True):
        y = raw("impulse_noise", plain(0.4, C=3), severity)
        assert (y == 0).double().mean().item() == pytest.approx(share / 2, rel=0.06)
        assert (y == 1).double().mean().item() == pytest.approx(share / 2, rel=0.06)
        assert (y == 0.4).double().mean().item() == pytest.approx(1 - share, rel=0.01)


@pytest.mark.parametrize("level", [0, 51, 128, 255])
def test_photons_are_counted_by_poisson(level):
    for severity, photons in zip(SEVERITIES, (60, 25, 18, 10, 5), strict=True):
        count = raw("shot_noise", plain(level / 255), severity) * photons
        rate = level / 255 * photons
        torch.testing.assert_close(count, count.round(), rtol=0, atol=1e-9)
        assert count.mean().item() == pytest.approx(rate, rel=0.02)
        assert count.var().item() == pytest.approx(rate, rel=0.03)


# --- blur ----------------------------------------------------------------------------------------


def bump(size: int, width: float = 2.0) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    one = (-0.5 * (at / width) ** 2).exp()
    return (one[:, None] * one)[None, None]


def moments(x_BCHW: Tensor) -> tuple[float, float, float]:
    """Mass, and variance down and across, in pixels; of what has its centre in the middle."""
    x_HW = x_BCHW[0, 0]
    at = torch.arange(len(x_HW), dtype=torch.float64) - (len(x_HW) - 1) / 2
    mass = x_HW.sum().item()
    centre = (x_HW.sum(1) @ at / mass).item(), (x_HW.sum(0) @ at / mass).item()
    assert centre == pytest.approx((0, 0), abs=1e-6)
    return mass, (x_HW.sum(1) @ at**2 / mass).item(), (x_HW.sum(0) @ at**2 / mass).item()


@pytest.mark.parametrize("size", [28, 64, 128])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blurs_spread_a_point_by_what_they_say_even_below_a_pixel(size, severity):
    """A kernel of whole pixels does nothing at a third of one, and would be found out here."""
    x = bump(size)
    mass, down, across = moments(x)

    def strength(table):
        return table[28 if size == 28 else 64][severity - 1] / 224 * size

    sigma, radius = strength(corruptions.SIGMA), strength(corruptions.RADIUS)
    for family, expected in (("gaussian_blur", sigma**2), ("defocus_blur", radius**2 / 4)):
        after = moments(raw(family, x, severity))
        assert after[0] == pytest.approx(mass, rel=1e-3)
        assert after[1] - down == pytest.approx(expected, rel=0.03)
        assert after[2] - across == pytest.approx(expected, rel=0.03)
    length = strength(corruptions.LENGTH)
    after = moments(raw("motion_blur", x, severity))
    assert after[1] - down + after[2] - across == pytest.approx(length**2 / 12, rel=0.03)


def test_motion_goes_in_any_direction_and_along_a_line():
    x = bump(64).expand(200, -1, -1, -1)
    y = raw("motion_blur", x, 5)
    across = torch.tensor([moments(one[None])[2] - 4 for one in y])
    full = (32 / 224 * 64) ** 2 / 12
    assert across.min() < 0.02 * full
    assert across.max() > 0.98 * full
    assert across.mean().item() == pytest.approx(full / 2, rel=0.15)


def test_zooming_leaves_the_centre_and_moves_the_rim_outwards():
    at = torch.linspace(-1, 1, 225, dtype=torch.float64)
    ramp = (0.5 + 0.4 * at).expand(1, 1, 225, 225)
    mean = sum(1 / (1 + 0.31 * i / 11) for i in range(12)) / 12  # of where pixels are fetched from
    y = raw("zoom_blur", ramp, 5)
    torch.testing.assert_close(y, 0.5 + 0.4 * mean * at.expand_as(y), rtol=0, atol=1e-9)


# --- files, exposure -----------------------------------------------------------------------------


def test_blocks_need_not_be_whole_pixels(monkeypatch):
    x_BCHW = noise(3, 1, 28)
    for count in (27, 19, 8):
        monkeypatch.setitem(corruptions.BLOCKS, 28, (count,) * 5)
        fine = x_BCHW.double().repeat_interleave(count, 2).repeat_interleave(count, 3)
        small = torch.nn.functional.avg_pool2d(fine, 28)
        mine = [int((i + 0.5) * count / 28) for i in range(28)]
        expected = small[:, :, mine][:, :, :, mine]
        torch.testing.assert_close(raw("pixelate", x_BCHW, 1), expected, rtol=0, atol=1e-9)


def test_blocks_of_whole_pixels_are_pils(monkeypatch):
    x_BCHW = noise(6, 1, 64)
    for count in (32, 16):
        monkeypatch.setitem(corruptions.BLOCKS, 64, (count,) * 5)
        y_BCHW = corrupt(x_BCHW, "pixelate", 1, torch.arange(6))
        for x, y in zip(x_BCHW, y_BCHW, strict=True):
            image = Image.fromarray((x[0] * 255).round().byte().numpy())
            small = image.resize((count, count), Image.Resampling.BOX)
            theirs = np.array(small.resize((64, 64), Image.Resampling.NEAREST))
            assert np.abs(theirs - 255 * y[0].numpy()).max() <= 1.01


@pytest.mark.parametrize("size", SIZES)
def test_jpeg_has_the_quality_of_its_size(size):
    x_BCHW = drawn("cells", size, 2)
    for severity, quality in zip(SEVERITIES, corruptions.QUALITY[size], strict=True):
        theirs = jpeg((255 * x_BCHW).round().double(), quality) / 255
        assert torch.equal(corrupt(x_BCHW, "jpeg", severity, torch.arange(2)), theirs.float())


@pytest.mark.parametrize(
    ("family", "enhance", "factors"),
    [
        ("brightness_up", ImageEnhance.Brightness, (1.1, 1.2, 1.3, 1.4, 1.5)),
        ("brightness_down", ImageEnhance.Brightness, (0.9, 0.8, 0.7, 0.6, 0.5)),
        ("contrast_up", ImageEnhance.Contrast, (1.1, 1.2, 1.3, 1.4, 1.6)),
        ("contrast_down", ImageEnhance.Contrast, (0.9, 0.8, 0.7, 0.6, 0.4)),
        ("saturate", ImageEnhance.Color, (1.2, 1.4, 1.6, 1.8, 2.2)),
    ],
)
def test_exposure_is_pils_within_two_levels(family, enhance, factors):
    """PIL rounds the mean or the grey first, and cuts off where we round."""
    x_BCHW = noise(4, 3, 28)
    for severity, factor in zip(SEVERITIES, factors, strict=True):
        y_BHWC = corrupt(x_BCHW, family, severity, torch.arange(4)).permute(0, 2, 3, 1)
        for x, y in zip(x_BCHW, y_BHWC, strict=True):
            image = Image.fromarray((255 * x).round().byte().permute(1, 2, 0).numpy())
            theirs = np.int16(np.array(enhance(image).enhance(factor)))
            assert np.abs(theirs - (255 * y).round().numpy()).max() <= 2


@pytest.mark.parametrize(
    ("family", "powers"),
    [("gamma_corr_up", (1.1, 1.2, 1.3, 1.4, 1.6)), ("gamma_corr_down", (0.9, 0.8, 0.7, 0.6, 0.4))],
)
def test_gamma_is_torchvisions(family, powers):
    x_BCHW = noise(4, 1, 28)
    for severity, power in zip(SEVERITIES, powers, strict=True):
        ours = corrupt(x_BCHW, family, severity, torch.arange(4))
        theirs = TF.adjust_gamma(x_BCHW, power)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.51 * LEVEL)


# --- what is laid over ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize(
    ("family", "level", "within"),
    [("stain_deposit", 1.0, 0.04), ("characters", 0.0, 1e-9), ("bubble", 0.0, 0.15)],
)
def test_what_is_laid_over_covers_the_same_share_in_the_same_place(family, level, within, size):
    """Bubbles may be smaller than a pixel, and are then drawn a little too large."""
    small, large = (plain(level, s).expand(30, -1, -1, -1) for s in (size, 112))
    change_B = [(raw(family, x, 1) - level).mean((1, 2, 3)) for x in (small, large)]
    assert (change_B[1].abs() > 0).float().mean() > 0.9
    torch.testing.assert_close(change_B[0].mean(), change_B[1].mean(), rtol=within, atol=0)
    a, b = (
        torch.nn.functional.adaptive_avg_pool2d((raw(family, x, 3) - level).abs(), 4)
        for x in (small, large)
    )
    assert torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1] > 0.97


def test_outside_the_circle_it_is_black():
    y = raw("black_corner", plain(1.0), 3)
    assert y.mean().item() == pytest.approx(math.pi / 4, rel=1e-3)
    assert y[0, 0, 0, 0] == 0
    assert y[0, 0, 112, 112] == 1


def test_letters_are_letters():
    assert all(
        len(letter) == 5 and all(len(row) == 4 for row in letter) for letter in corruptions.FONT
    )
    assert len({str(letter) for letter in corruptions.FONT}) == len(corruptions.FONT) == 28


# --- which belongs to what -----------------------------------------------------------------------

COUNTS = {"pathmnist": 11, "bloodmnist": 11, "dermamnist": 15, "retinamnist": 8, "tissuemnist": 8}
COUNTS |= {"octmnist": 6, "breastmnist": 7, "chestmnist": 13, "pneumoniamnist": 13}
COUNTS |= {"organamnist": 13, "organcmnist": 13, "organsmnist": 13}


def test_every_medmnist_set_has_medmnist_cs_corruptions():
    assert sorted(BY_DATASET) == medmnist.names()
    assert {name: len(set(of)) for name, of in BY_DATASET.items()} == COUNTS
    assert set().union(*BY_DATASET.values()) == set(FAMILIES)
    assert {"black_corner", "characters", "zoom_blur"} <= set(BY_DATASET["dermamnist"])
    assert "contrast_up" not in BY_DATASET["breastmnist"]
    assert "gaussian_noise" not in BY_DATASET["tissuemnist"]
    for name, of in BY_DATASET.items():
        colour = name in ("pathmnist", "bloodmnist", "dermamnist", "retinamnist")
        assert colour or not {"saturate", "stain_deposit", "bubble"} & set(of)


def test_unions_and_other_sets_have_corruptions_too():
    assert belonging("medmnist/octmnist", 1) == BY_DATASET["octmnist"]
    assert belonging("medmnist/organamnist+organcmnist", 1) == BY_DATASET["organamnist"]
    mixed = belonging("medmnist/breastmnist+dermamnist", 3)
    assert set(mixed) == set(BY_DATASET["breastmnist"]) & set(BY_DATASET["dermamnist"])
    assert belonging("phantom/xray", 1) == BY_DATASET["chestmnist"]
    assert len(belonging("phantom/cells", 3)) == 13
    assert "saturate" not in belonging("phantom/lesions", 1)
    assert belonging("elsewhere/pathmnist", 3) == belonging("phantom/cells", 3)


def test_a_family_is_named_as_its_function_and_a_plan_knows_them():
    assert all(function.__name__ == name for name, function in FAMILIES.items())
    assert ranges._families() == set(FAMILIES)
