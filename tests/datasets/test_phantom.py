"""A name is its bytes; a case is itself at every size; no task is free and none is hopeless."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from medssl.datasets import SPLITS, load, phantom, statistics

# Drawn images changed if these do: results kept under the same name would no longer compare.
MD5 = {
    "cells train": "933cf01d23ca1cc0ab665ce25f97cda3",
    "cells val": "544624cdd837adb50f54805681e67090",
    "cells test": "e9897c194834d3a84af73e9d929a4855",
    "fundus train": "f115781e4c4aec83aa4840298c7c2342",
    "fundus val": "c938767e76024bdd712d8df1b43ad492",
    "fundus test": "155eed0045500898e3ff368729d62574",
    "lesions-elsewhere train": "e1af22d15bcfbad4c877570733534227",
    "lesions-elsewhere val": "2c363711ed24bd147e63148bdafb8b07",
    "lesions-elsewhere test": "24c98bc4be9623a333fd29573a14fca8",
    "lesions train": "d5cda29fa4836d5f74c6734fdaa0d9b1",
    "lesions val": "8e226ef5ec30e19ed085e095578bf21e",
    "lesions test": "f812728f376cb87c1a4eb1282c6a5ceb",
    "organs train": "b38f49ef27c9990151fdb1644a52738d",
    "organs val": "f34a977c73997827ae177ea1abf7d815",
    "organs test": "d265bc51fe092244426009daa204d553",
    "xray train": "9b57db3f6f62cea9e7b12bf6126a98f4",
    "xray val": "e0011011d78eaf007438eb3e8dc28c23",
    "xray test": "f7ec29afcaa6a0554c5e4205f66d011f",
}


@pytest.fixture(scope="module")
def images():
    return {(n, s): phantom.load(n, s, 28) for n in phantom.names() for s in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", phantom.names())
def test_the_name_fixes_the_bytes(images, name, split):
    found = images[name, split]
    assert found.md5 == hashlib.md5(found.x_NHWC.tobytes() + found.t_NK.tobytes()).hexdigest()
    assert found.md5 == MD5[f"{name} {split}"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", phantom.names())
def test_contract(images, name, split):
    found = images[name, split]
    count, height, width, channels = found.x_NHWC.shape
    assert (height, width) == (28, 28)
    assert channels == (3 if name in ("cells", "fundus") else 1)
    rarest = images[name, "train"].t_NK.sum(0).min()
    assert phantom.about(name)[:2] == (channels, rarest)  # told without drawing one
    assert found.x_NHWC.dtype == np.uint8
    assert found.t_NK.dtype == np.float32
    assert found.t_NK.shape == (count, len(found.classes))
    assert 2 <= len(found.classes) == len(set(found.classes)) <= 8
    assert set(np.unique(found.t_NK)) == {0, 1}
    if not found.task.startswith("multi-label"):
        assert (found.t_NK.sum(1) == 1).all()
    assert (found.t_NK.sum(0) >= 20).all(), "every class, many times"
    assert (found.t_NK.mean(0) >= 0.08).all(), "mildly imbalanced"
    assert found.domain_N.dtype == np.int64
    assert (found.domain_N == np.zeros(count)).all()


@pytest.mark.parametrize("name", phantom.names())
def test_statistics_are_the_training_splits(images, name):
    mean_1C, std_1C = statistics(images[name, "train"].x_NHWC)
    for split in SPLITS:
        np.testing.assert_array_equal(images[name, split].mean_DC, mean_1C)
        np.testing.assert_array_equal(images[name, split].std_DC, std_1C)


def test_the_four_tasks_are_there(images):
    assert {found.task for found in images.values()} == {
        "multi-class",
        "binary-class",
        "multi-label, binary-class",
        "ordinal-regression",
    }


@pytest.mark.parametrize("name", phantom.names())
def test_no_image_comes_twice(images, name):
    seen = [x.tobytes() for split in SPLITS for x in images[name, split].x_NHWC]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", phantom.names())
def test_a_case_is_the_same_at_every_size(images, name):
    small = images[name, "val"]
    x_NHWC, t_NK = phantom._drawn(name, "val", 64)  # `load` would draw the training split too
    np.testing.assert_array_equal(t_NK, small.t_NK)
    w = overlap(64, 28)
    shrunk_NHWC = np.einsum("ay,nyxc,bx->nabc", w, x_NHWC / 255, w, optimize=True)
    pairs = zip(shrunk_NHWC, small.x_NHWC, strict=True)
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]
    assert np.median(r) > 0.8


def overlap(large: int, small: int) -> np.ndarray:
    """(small, large): each small pixel's average over the large ones it covers."""
    low, at = np.arange(small)[:, None] * large / small, np.arange(large)[None]
    w = (np.minimum(low + large / small, at + 1) - np.maximum(low, at)).clip(0)
    return w / w.sum(1, keepdims=True)


@pytest.mark.parametrize("name", phantom.names())
def test_pixels_leave_room(images, name):
    """Linear in raw pixels: far from chance and far from solved, or no method could stand out."""
    train, test = images[name, "train"], images[name, "test"]
    scale = StandardScaler().fit(train.x_NHWC.reshape(len(train), -1))
    x, x_test = (scale.transform(i.x_NHWC.reshape(len(i), -1)) for i in (train, test))
    score_NK = Ridge(alpha=3000.0).fit(x, train.t_NK).predict(x_test)
    assert 0.55 < roc_auc_score(test.t_NK, score_NK, average="macro") < 0.92


def test_what_a_caller_writes_stays_with_the_caller():
    first = phantom.load("lesions", "val", 28)
    first.x_NHWC[:] = 0
    assert phantom.load("lesions", "val", 28).md5 == first.md5
    assert phantom.load("lesions", "val", 28).x_NHWC.any()


def test_found_by_name():
    both = load("phantom/lesions+cells", "val", 28)
    assert len(both.classes) == 8
    assert both.mean_DC.shape == (2, 3)


def test_refusals_name_the_remedy():
    assert phantom.check("cells", 224) == []
    (variant,) = phantom.check("cell", 28)
    assert all(name in variant for name in ["'cell'", *phantom.names()])
    (size,) = phantom.check("cells", 32)
    assert "32 px" in size
    assert "28, 64, 128, 224" in size
    with pytest.raises(ValueError, match=r"'cell'.*cells, fundus.*; .*32 px"):
        phantom.load("cell", "train", 32)
    with pytest.raises(ValueError, match="no split 'dev': choose from train, val, test"):
        phantom.load("cells", "dev", 28)
