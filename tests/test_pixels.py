"""Each operation against PIL and torchvision, given its numbers, to a stated tolerance."""

import random

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from scipy.interpolate import BSpline
from torch import Tensor

from medssl import _pixels
from medssl.views import PRESETS, TAILS

# B images, C channels, H W pixels

LEVEL = 1 / 255


def noise(B: int, C: int, H: int, W: int | None = None, seed: int = 0) -> Tensor:
    """The worst image for a filter: every pixel its own, black and white among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (B, C, H, W or H), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("C", [1, 3])
def test_equalise_is_torchvisions_exactly_where_chosen(C: int) -> None:
    x_BCHW = noise(10, C, 37, 53)
    x_BCHW[0] = 77  # one level
    x_BCHW[1] //= 64  # four levels
    x_BCHW[2, :, :30] = 0  # black margins
    x_BCHW[3, :, 4:] = 255  # less than 255 pixels below the brightest: left as it is
    x_BCHW[7, :, 7:] = 255  # less than 510: a pixel per level
    x_BCHW[4] = 90 + x_BCHW[4] // 8
    x_BCHW[5, :, 1:] = x_BCHW[5, :, :1]
    chosen_B = torch.tensor([True] * 8 + [False] * 2)
    before = x_BCHW.clone()
    ours = _pixels.equalise(x_BCHW.transpose(0, 1).contiguous(), chosen_B).transpose(0, 1)
    theirs = torch.stack([F.equalize(x) for x in x_BCHW[:8]])
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, torch.cat((theirs, x_BCHW[8:])))
    assert torch.equal(x_BCHW, before)
    assert not torch.equal(ours[6], x_BCHW[6])


@pytest.mark.parametrize(
    ("source", "size"), [(28, 28), (64, 64), (28, 64), (64, 28), (40, 33), (28, 12)]
)
@pytest.mark.parametrize("flipped", [False, True])
def test_crop_is_pil_bicubic_within_one_grey_level(source: int, size: int, flipped: bool) -> None:
    """Noise overshoots everywhere, so a cut after the wrong axis is 10 levels off.

    Columns go first, as in PIL; but Pillow 13 turns this round where a tall box loses rows, which
    a view of its source's own size never does: hence only wide boxes below.
    """
    B = 40
    x_BCHW = noise(B, 1, source)
    rng = random.Random(0)
    boxes = [(0, 0, source, source)]
    if size >= source:
        boxes += [(0, 0, 1, 1), (source - 3, 2, 3, 9)]
    while len(boxes) < B:
        h, w = rng.randint(2, source), rng.randint(2, source)
        if h > size:
            h, w = min(h, w), max(h, w)
        boxes.append((rng.randint(0, source - h), rng.randint(0, source - w), h, w))

    x_CBHW = x_BCHW.transpose(0, 1).float()
    flip_B = torch.full((B,), flipped)
    ours = _pixels.crop(x_CBHW, torch.tensor(boxes).float(), flip_B, (size, size))[0]
    for x_HW, y_HW, (top, left, h, w) in zip(x_BCHW[:, 0], ours, boxes, strict=True):
        image = Image.fromarray(x_HW.numpy()).crop((left, top, left + w, top + h))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        pil = torch.from_numpy(np.array(F.hflip(image) if flipped else image))
        assert ((y_HW * 255).round() - pil).abs().max() <= 1


def test_crop_sees_nothing_beyond_its_box() -> None:
    x_CBHW = noise(1, 3, 30, seed=1).transpose(0, 1).float()
    other = 255 - x_CBHW
    other[:, :, 4:19, 7:25] = x_CBHW[:, :, 4:19, 7:25]
    box_B4, flip_B = torch.tensor([[4.0, 7, 15, 18]]), torch.tensor([False])
    same = [_pixels.crop(x, box_B4, flip_B, (30, 30)) for x in (x_CBHW, other)]
    torch.testing.assert_close(*same, rtol=0, atol=0)


def still(B: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(B), torch.zeros(B, 2, 7, 7)


@pytest.mark.parametrize(("H", "W"), [(28, 28), (33, 20), (64, 64)])
def test_turning_is_torchvisions_rotate_within_3e_5_but_for_the_corners(H: int, W: int) -> None:
    x_CBHW = noise(7, 3, H, W).transpose(0, 1) / 255
    angle_B = torch.tensor([-45.0, -10, 0, 3, 20, 45, 137])
    ours = _pixels.warp(x_CBHW, angle_B, still(7)[1])
    down, across = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    radius = torch.hypot(down - (H - 1) / 2, across - (W - 1) / 2)
    inside = radius <= min(H, W) / 2 - 0.5  # from there torchvision looks up what is not there
    for b, angle in enumerate(angle_B.tolist()):
        theirs = F.rotate(x_CBHW[:, b], angle, F.InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours[:, b, inside], theirs[:, inside], rtol=0, atol=3e-5)


def test_a_quarter_turn_moves_every_pixel_to_its_place() -> None:
    x_CBHW = noise(1, 3, 28).transpose(0, 1) / 255
    ours = _pixels.warp(x_CBHW, torch.tensor([90.0]), still(1)[1])
    torch.testing.assert_close(ours, x_CBHW.rot90(1, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("H", "W"), [(28, 28), (5, 9), (64, 64), (1, 1)])
def test_neither_turned_nor_bent_is_the_image_itself(H: int, W: int) -> None:
    x_CBHW = noise(3, 3, H, W).transpose(0, 1) / 255
    torch.testing.assert_close(_pixels.warp(x_CBHW, *still(3)), x_CBHW, rtol=0, atol=2e-5)


def test_a_bend_is_torchvisions_elastic_transform_but_for_the_border() -> None:
    B, H, W = 4, 40, 30
    x_CBHW = noise(B, 3, H, W).transpose(0, 1) / 255
    bend_B2GG = 0.2 * torch.rand(B, 2, 7, 7, generator=torch.Generator().manual_seed(0)) - 0.1
    ours = _pixels.warp(x_CBHW, torch.zeros(B), bend_B2GG)
    knots = np.arange(-3, 8) / 4  # four intervals, and three knots beyond each end
    weights_HG, weights_WG = (
        BSpline.design_matrix((np.arange(n) + 0.5) / n, knots, 3).toarray() for n in (H, W)
    )
    for b in range(B):
        move_2HW = torch.from_numpy(weights_HG @ bend_B2GG[b].double().numpy() @ weights_WG.T)
        assert move_2HW.abs().max() <= bend_B2GG[b].abs().max()
        theirs = F.elastic_transform(x_CBHW[:, b], 2 * move_2HW.permute(1, 2, 0)[None].float())
        inner = slice(5, -5)  # nothing moves by more than a tenth of 40 pixels
        torch.testing.assert_close(
            ours[:, b, inner, inner], theirs[:, inner, inner], rtol=0, atol=3e-5
        )


def test_beyond_the_border_is_the_mirrored_image() -> None:
    x_CBHW = noise(1, 1, 20, 30).transpose(0, 1) / 255
    bend_B2GG = torch.zeros(1, 2, 7, 7)
    bend_B2GG[:, 0], bend_B2GG[:, 1] = 6 / 30, -4 / 20  # from 6 to the right, and 4 above
    ours = _pixels.warp(x_CBHW, torch.zeros(1), bend_B2GG)[0, 0]
    padded = np.pad(x_CBHW[0, 0].numpy(), ((4, 0), (0, 6)), mode="symmetric")
    np.testing.assert_allclose(ours.numpy(), padded[:20, 6:], rtol=0, atol=2e-5)


def test_turned_first_then_bent_in_the_source() -> None:
    """Both at once: a shift of where to look is along the source's axes, whatever the angle."""
    x_CBHW = noise(1, 1, 28).transpose(0, 1) / 255
    bend_B2GG = torch.zeros(1, 2, 7, 7)
    bend_B2GG[:, 0] = 3 / 28
    ours = _pixels.warp(x_CBHW, torch.tensor([90.0]), bend_B2GG)[0, 0]
    shifted = _pixels.warp(x_CBHW, torch.zeros(1), bend_B2GG)[0, 0]
    torch.testing.assert_close(ours, shifted.rot90(1), rtol=0, atol=2e-5)


def test_hue_is_torchvisions_within_1e_5() -> None:
    B = 101
    x_CBHW = noise(B, 3, 16).transpose(0, 1) / 255
    x_CBHW[:, :, 0] = x_CBHW[:1, :, 0]  # grey pixels have no hue
    x_CBHW[1, :, 1] = x_CBHW[0, :, 1]  # red = green, red = blue, green = blue
    x_CBHW[2, :, 2] = x_CBHW[0, :, 2]
    x_CBHW[2, :, 3] = x_CBHW[1, :, 3]
    x_CBHW[:, :, 4, :8], x_CBHW[:, :, 4, 8:] = 0, 1
    x_CBHW[:, :, 5] = torch.eye(3).repeat(1, 6)[:, None, :16]  # pure colours
    turn_B = torch.linspace(-0.5, 0.5, B)
    ours = _pixels.turn_hue(x_CBHW, turn_B)
    theirs = torch.stack([F.adjust_hue(x_CBHW[:, b], turn_B[b].item()) for b in range(B)], 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(_pixels.turn_hue(x_CBHW, 0 * turn_B), x_CBHW, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_torchvisions_within_3e_6(size: int, sigma: float) -> None:
    x_CBHW = noise(2, 3, size).transpose(0, 1) / 255
    ours = _pixels.blur(x_CBHW, torch.full((2,), sigma), radius=8)
    theirs = F.gaussian_blur(x_CBHW.transpose(0, 1), [17, 17], [sigma, sigma]).transpose(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_blur_wider_than_the_image_reflects_again(size: int) -> None:
    x_CBHW = noise(1, 1, size).transpose(0, 1) / 255
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 1.7) ** 2)
    padded = np.pad(x_CBHW[0, 0].double().numpy(), 8, mode="reflect" if size > 1 else "edge")
    rows = sum(k * padded[i : i + size] for i, k in enumerate(kernel / kernel.sum()))
    both = sum(k * rows[:, i : i + size] for i, k in enumerate(kernel / kernel.sum()))
    ours = _pixels.blur(x_CBHW, torch.tensor([1.7]), radius=8)
    np.testing.assert_allclose(ours[0, 0].numpy(), both, rtol=0, atol=1e-6)


def test_blur_is_each_images_own_and_keeps_enough_tail() -> None:
    x_CBHW = noise(3, 1, 28).transpose(0, 1) / 255
    ours = _pixels.blur(x_CBHW, torch.tensor([0.0, 1.0, 2.0]), radius=8)
    torch.testing.assert_close(ours[:, 0], x_CBHW[:, 0], rtol=0, atol=0)
    for b, sigma in ((1, 1.0), (2, 2.0)):
        theirs = F.gaussian_blur(x_CBHW[:, b], [17, 17], [sigma, sigma])
        torch.testing.assert_close(ours[:, b], theirs, rtol=0, atol=3e-6)
    wide = _pixels.blur(x_CBHW, torch.tensor([0.0, 1.0, 2.0]), radius=20)
    assert 0 < (ours - wide).abs().max() < 0.1 * LEVEL
    assert TAILS * max(view.sigma[1] for view in PRESETS["asymmetric"]) == 8


def test_solarise_is_torchvisions() -> None:
    x_BCHW = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(4, 3, 1, 1)
    chosen_B = torch.tensor([True, False, False, True])
    ours = _pixels.solarise((x_BCHW / 255).transpose(0, 1), chosen_B).transpose(0, 1)
    theirs = F.solarize(x_BCHW, 128)
    theirs[1:3] = x_BCHW[1:3]
    torch.testing.assert_close(ours, theirs / 255, rtol=0, atol=1e-6)
