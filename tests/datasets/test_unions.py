"""A union is its members side by side, each image keeping the statistics of its own set."""

import numpy as np
import pytest

from medssl import datasets


def test_classes_stand_side_by_side_and_images_keep_their_own_statistics():
    cells = datasets.load("phantom/cells", "val", 28)
    organs = datasets.load("phantom/organs", "val", 28)
    both = datasets.load("phantom/cells+organs", "val", 28)
    n, k = len(cells), len(cells.classes)
    assert len(both) == n + len(organs)
    assert both.x_NHWC.shape[3] == 3  # grey beside colour becomes colour
    assert np.array_equal(both.x_NHWC[:n], cells.x_NHWC)
    assert np.array_equal(both.x_NHWC[n:, ..., 1:2], organs.x_NHWC)
    assert np.array_equal(both.t_NK[:n, :k], cells.t_NK)
    assert not both.t_NK[:n, k:].any()
    assert np.array_equal(both.t_NK[n:, k:], organs.t_NK)
    assert np.array_equal(both.mean_DC[both.domain_N[0]], cells.mean_DC[0])
    assert np.array_equal(both.std_DC[both.domain_N[-1]], organs.std_DC.repeat(3, 1)[0])
    assert both.classes == tuple(
        [f"cells: {c}" for c in cells.classes] + [f"organs: {c}" for c in organs.classes]
    )


def test_the_order_of_members_is_part_of_the_content():
    ab, ba = (
        datasets.load(f"phantom/{n}", "val", 28).md5 for n in ("cells+organs", "organs+cells")
    )
    assert ab != ba


@pytest.mark.data
def test_real_files_unite(data):
    both = datasets.load("medmnist/breastmnist+pneumoniamnist", "train", 28, data)
    assert both.t_NK.shape == (546 + 4708, 4)
    assert both.mean_DC.shape == (2, 1)


def test_a_stranger_is_seen_by_the_mean_of_a_unions_members():
    both = datasets.load("phantom/cells+organs", "val", 28)
    other = datasets.load("phantom/xray", "val", 28)
    seen = other.through(both.mean_DC, both.std_DC)
    assert np.array_equal(seen.x_NHWC, other.x_NHWC)
    assert np.array_equal(seen.mean_DC, both.mean_DC.mean(0, keepdims=True))
    assert np.array_equal(seen.std_DC, both.std_DC.mean(0, keepdims=True))
    again = both.through(other.mean_DC, other.std_DC)
    assert not again.domain_N.any()
    assert np.array_equal(again.mean_DC, other.mean_DC)
