"""Twins are found, strangers are not, and test images among training images are told of."""

import numpy as np
import pytest
import torch

from medssl import audit, datasets
from medssl.datasets import Images


def images(x_NHWC) -> Images:
    half, none = np.full((1, 1), 0.5, np.float32), np.zeros(len(x_NHWC), np.int64)
    return Images(
        x_NHWC, np.ones((len(x_NHWC), 1), np.float32), "", ("a",), half, half, none, "md5"
    )


@pytest.fixture(params=[28, 64])
def cells(request):
    return datasets.load("phantom/cells", "train", request.param).x_NHWC[:200]


def test_what_is_there_and_nearly_there_is_counted_and_strangers_are_not(cells):
    known, strangers = cells[:100], cells[100:160]
    rng = np.random.default_rng(0)
    noisy = np.uint8(np.clip(known[:20] + rng.normal(0, 4, known[:20].shape), 0, 255))
    brighter = np.uint8(np.clip(known[20:30].astype(int) + 3, 0, 255))
    asked = np.concatenate([known[50:57], noisy, strangers, brighter])
    found = audit.overlap(images(known), images(asked))
    assert found == audit.Overlap(same=7, near=30, images=97)


def test_neither_order_nor_chunks_change_the_count(cells, monkeypatch):
    known, asked = images(cells[:100]), images(cells[50:150])
    was = audit.overlap(known, asked)
    assert was.same == 50
    monkeypatch.setattr(audit, "CHUNK", 7)
    assert audit.overlap(images(cells[:100][::-1].copy()), asked) == was


def test_a_dark_image_is_not_near_another_dark_image():
    """Nearness is a share of the image's own contrast: else all nearly empty images are twins."""
    rng = np.random.default_rng(0)
    dark = np.uint8(rng.integers(0, 9, (40, 28, 28, 1)))
    assert audit.overlap(images(dark[:20]), images(dark[20:])) == audit.Overlap(0, 0, 20)


def test_grey_and_colour_can_be_compared(cells):
    grey = np.uint8(cells[:30].mean(3, keepdims=True).round())
    found = audit.overlap(images(cells[:30]), images(grey))
    assert (found.same, found.near) == (0, 30)
    for one, other in ((grey, grey.repeat(3, 3)), (grey.repeat(3, 3), grey)):
        assert audit.overlap(images(one), images(other)) == audit.Overlap(30, 0, 30)


def test_breastmnist_has_twins_in_both_splits(data):
    train, test = (datasets.load("medmnist/breastmnist", s, 64, data) for s in ("train", "test"))
    found = audit.overlap(train, test, torch.device("cpu"))
    assert found.same == 1
    assert 45 <= found.near <= 60
    train, test = (datasets.load("medmnist/pneumoniamnist", s, 28, data) for s in ("train", "test"))
    assert audit.overlap(train, test)[:2] == (0, 0)
