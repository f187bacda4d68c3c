"""A batch's JPEG against files that PIL writes and reads."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from medssl import _jpeg
from medssl.datasets import phantom

SHAPES = [(28, 28), (64, 64), (31, 45), (17, 16), (8, 8), (5, 7)]


def written(x_NHWC: np.ndarray, quality: int) -> np.ndarray:
    """By libjpeg, one image after another."""
    found = []
    for x in x_NHWC:
        file = io.BytesIO()
        Image.fromarray(x.squeeze()).save(file, "JPEG", quality=quality)
        found.append(np.array(Image.open(file)).reshape(x.shape))
    return np.stack(found)


def ours(x_NHWC: np.ndarray, quality: int) -> np.ndarray:
    x_NCHW = torch.from_numpy(x_NHWC).permute(0, 3, 1, 2).double()
    return _jpeg.jpeg(x_NCHW, quality).permute(0, 2, 3, 1).numpy()


def drawn(name: str, size: int, n: int = 20) -> np.ndarray:
    variant = phantom.VARIANTS[name]
    t_BK = np.eye(len(variant.share), dtype=np.float32)[np.arange(n) % len(variant.share)]
    x = variant.draw(phantom.Canvas(np.random.default_rng(1), variant.share, t_BK, size))
    return np.uint8(np.rint(x.clip(0, 1) * 255)).reshape(n, size, size, -1)


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("name", ["cells", "xray"])
@pytest.mark.parametrize(
    ("quality", "share"), [(96, 0.13), (88, 0.07), (70, 0.04), (50, 0.03), (30, 0.015), (7, 0.01)]
)
def test_images_are_pils_but_for_cosines_between_two_steps(name, size, quality, share):
    """libjpeg rounds within its cosines; where one lies on an edge, its block may differ."""
    x_NHWC = drawn(name, size)
    theirs = written(x_NHWC, quality)
    away = np.abs(ours(x_NHWC, quality) - theirs)
    assert (away > 1).mean() < 0.06
    assert away.mean() < share * np.abs(theirs - np.float64(x_NHWC)).mean()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_noise_of_any_shape_is_pils_too(shape, channels):
    """Padding shows at once: a wrong one changes every pixel of the last blocks."""
    rng = np.random.default_rng(0)
    x_NHWC = rng.integers(0, 256, (40, *shape, channels), dtype=np.uint8)
    away = np.abs(ours(x_NHWC, 20) - written(x_NHWC, 20))
    assert (away > 1).mean() < 0.05
    assert (away[:, -1] > 1).mean() < 0.06
    assert (away[:, :, -1] > 1).mean() < 0.06


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images_stay_as_pil_has_them(channels):
    x_NHWC = np.arange(256, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 20, 20, channels), np.uint8
    )
    for quality in (5, 50, 95):
        assert np.array_equal(ours(x_NHWC, quality), written(x_NHWC, quality))


@pytest.mark.parametrize("quality", [1, 7, 49, 50, 51, 80, 100])
def test_the_tables_are_those_that_pil_writes(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    theirs = Image.open(io.BytesIO(file.getvalue())).quantization
    for which, base in ((0, _jpeg.LUMA), (1, _jpeg.CHROMA)):
        assert sorted(theirs[which]) == sorted(_jpeg.table(base, quality))
        assert tuple(theirs[which]) == _jpeg.table(base, quality)
