"""Label fractions: nested, in proportion, every class kept, the same for the same seed."""

import numpy as np
import pytest

from medssl.datasets._splits import order, sample, scarce, shots, subset

COUNTS = (700, 200, 60, 30, 8, 1, 1)  # seven classes as uneven as DermaMNIST's


@pytest.fixture
def one_hot():
    y_N = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))
    return np.eye(7, dtype=np.float32)[y_N]


@pytest.fixture
def multi_hot():
    rng = np.random.default_rng(0)
    t_NK = (rng.random((2000, 6)) < [0.3, 0.2, 0.1, 0.05, 0.01, 0.002]).astype(np.float32)
    assert t_NK.any(0).all()
    return t_NK


@pytest.mark.parametrize("kind", ["one_hot", "multi_hot"])
@pytest.mark.parametrize("seed", range(3))
def test_nested_in_proportion_and_complete(kind, seed, request):
    t_NK = request.getfixturevalue(kind)
    before: set[int] = set()
    for fraction in (0.01, 0.05, 0.1, 0.5, 1.0):
        kept = subset(t_NK, fraction, seed)
        assert (
            len(kept) == len(set(kept)) == max(round(fraction * len(t_NK)), 7 * (kind == "one_hot"))
        )
        assert before <= set(kept)
        assert t_NK[kept].any(0).all()
        share_K = t_NK[kept].sum(0) / len(kept)
        slack = 7 / len(kept)  # one image of each class more or less, by rounding and by the rule
        assert (abs(share_K - t_NK.mean(0)) <= slack + 0.02 * (kind == "multi_hot")).all()
        before = set(kept)


def test_every_image_once_at_one(one_hot):
    assert np.array_equal(np.sort(order(one_hot, 0)), np.arange(len(one_hot)))
    assert np.array_equal(subset(one_hot, 1.0, 5), np.arange(len(one_hot)))


def test_the_seed_draws_the_subset(one_hot):
    assert np.array_equal(subset(one_hot, 0.1, 0), subset(one_hot, 0.1, 0))
    assert not np.array_equal(subset(one_hot, 0.1, 0), subset(one_hot, 0.1, 1))


def test_the_draw_does_not_follow_the_files_order(one_hot):
    """Images of a class are drawn from the whole file, not from its beginning."""
    assert subset(one_hot, 0.1, 0).mean() / len(one_hot) == pytest.approx(0.5, abs=0.1)


def test_the_published_subset_stays(one_hot):
    """Golden: a subset is part of what a cell's id promises."""
    assert subset(one_hot, 0.01, 0).tolist() == [162, 206, 212, 222, 391, 451, 459, 506, 711, 890]


def test_shots_are_so_many_of_each_class_nested_and_all_where_there_are_fewer(one_hot):
    before: set[int] = set()
    for each in (1, 5, 20):
        kept = shots(one_hot, each, seed=0)
        assert one_hot[kept].sum(0).tolist() == [min(each, count) for count in COUNTS]
        assert before <= set(kept)
        before = set(kept)
    assert not np.array_equal(shots(one_hot, 5, seed=0), shots(one_hot, 5, seed=1))


def test_classes_that_have_fewer_images_are_told(one_hot):
    assert scarce(one_hot, 1) == ""
    assert scarce(one_hot, 9) == "class 4 has 8, class 5 has 1, class 6 has 1"


def test_images_without_any_label_are_told_like_a_class_where_there_are_some():
    t_NK = np.float32([[1, 0]] * 5 + [[0, 1]] * 3 + [[1, 1]] + [[0, 0]] * 2)
    assert scarce(t_NK, 2) == ""
    assert scarce(t_NK, 3) == "no label at all has 2"
    assert scarce(t_NK, 5) == "class 1 has 4, no label at all has 2"
    assert scarce(t_NK[:9], 5) == "class 1 has 4"


def test_shots_of_many_labels_hold_at_least_so_many_of_each(multi_hot):
    kept = shots(multi_hot, 5, seed=0)
    assert len(kept) == len(set(kept)) <= 5 * 7
    assert (multi_hot[kept].sum(1) == 0).sum() == 5  # without any: a class of its own
    assert (multi_hot[kept].sum(0) >= np.minimum(5, multi_hot.sum(0))).all()


def test_a_sample_is_nested_and_differs_by_seed():
    few, more = sample(100, 10, seed=0), sample(100, 50, seed=0)
    assert len(few) == 10
    assert set(few) < set(more)
    assert not np.array_equal(few, sample(100, 10, seed=1))
