"""Equal to slow references; intervals cover what they promise, and p is uniform where nothing is.

Simulations put many small studies beside each other as labels of one matrix, so that thousands take
a second; they are drawn from a seed, and their bounds are those of a right implementation.
"""

import hashlib
import itertools
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from medssl import stats
from medssl.metrics import classification

TASKS = {
    "multi-class": 5,
    "ordinal-regression": 4,
    "binary-class": 2,
    "multi-label, binary-class": 6,
}

# N images, K classes or simulated studies, R the test set and its resamples


def drawn(task: str, n: int, seed: int, digits: int = 1):
    """Scores with ties, as probabilities, and targets; the last class is rare."""
    rng, k = np.random.default_rng(seed), TASKS[task]
    if task.startswith("multi-label"):
        t_NK = rng.random((n, k)) < np.linspace(0.6, 0.1, k)
        t_NK[:, -1] = np.arange(n) == n // 2
        return np.round(0.3 * t_NK + 0.7 * rng.random((n, k)), digits), t_NK
    share = np.ones(k) if k == 2 else np.r_[np.ones(k - 1), 0.02]
    t_NK = np.eye(k)[rng.choice(k, n, p=share / share.sum())]
    s_NK = np.round(t_NK + rng.random((n, k)) * 2, digits) + 0.1
    s_NK /= s_NK.sum(1, keepdims=True)
    if k == 2:
        s_NK[:, 0] = rng.random(n)  # of a binary task the last column alone is judged
    return s_NK, t_NK


def images(c_N: np.ndarray) -> np.ndarray:
    """A resample, image by image."""
    return np.repeat(np.arange(len(c_N)), c_N)


def studies(auroc: float, n: int, k: int, seed: int, other: float | None = None):
    """k studies of n images, 40 % positive, of a true AUROC; with `other`, a correlated rival."""
    rng = np.random.default_rng(seed)
    t_NK, z_NK = rng.random((n, k)) < 0.4, rng.normal(size=(n, k))

    def scores(a: float) -> np.ndarray:
        noise_NK = 0.8 * z_NK + 0.6 * rng.normal(size=(n, k))
        return noise_NK + t_NK * np.sqrt(2) * NormalDist().inv_cdf(a)

    return t_NK, scores(auroc), None if other is None else scores(other)


def covered(v_KR: np.ndarray, truth: float) -> float:
    ends = np.array([stats.interval(v_R) for v_R in v_KR])
    return np.mean((ends[:, 1] <= truth) & (truth <= ends[:, 2]))


# resamples


def test_resamples_are_those_of_the_seed_and_the_size_on_every_machine():
    c_NR = stats.resamples(57, 20, seed=3)
    assert hashlib.sha256(c_NR.T.tobytes()).hexdigest()[:16] == "f546bccec8fcb8f3"
    assert np.array_equal(stats.resamples(57, 9, seed=3), c_NR[:, :10])  # more begin with fewer
    assert not np.array_equal(stats.resamples(57, 20, seed=4), c_NR)
    assert not np.array_equal(c_NR[:, 1], c_NR[:, 2])


def test_a_resample_holds_as_many_images_each_as_often_as_chance_says():
    c_NR = stats.resamples(200, 2000)
    assert (c_NR[:, 0] == 1).all()
    assert (c_NR.sum(0) == 200).all()
    drawn_NR = c_NR[:, 1:].astype(float)
    chi2 = ((drawn_NR.sum(1) - 2000) ** 2 / 2000).sum()
    assert 0.001 < scipy.stats.chi2.sf(chi2, 199) < 0.999
    assert drawn_NR.var() == pytest.approx(1 - 1 / 200, rel=0.01)
    assert (drawn_NR == 0).mean() == pytest.approx((1 - 1 / 200) ** 200, rel=0.01)


def test_stratified_resamples_keep_the_size_of_each_stratum():
    strata_N = np.array([0, 7, 0, 7, 7, 3, 0, 0])
    c_NR = stats.resamples(8, 400, strata_N=strata_N)
    for stratum, size in ((0, 4), (7, 3), (3, 1)):
        assert (c_NR[strata_N == stratum].sum(0) == size).all()
    assert c_NR[:, 1:].mean(1) == pytest.approx(np.ones(8), abs=0.15)
    assert c_NR[strata_N == 0].max() > 2


@pytest.mark.parametrize(("n", "count"), [(0, 5), (5, 0)])
def test_no_resamples_of_nothing(n, count):
    with pytest.raises(ValueError, match="both must be 1 or more"):
        stats.resamples(n, count)


# AUROC and the other metrics of every resample


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("n", "digits"), [(60, 1), (60, 6), (301, 2)])
def test_auroc_of_every_resample_is_sklearns(task, n, digits, monkeypatch):
    monkeypatch.setattr(stats, "CHUNK", 7 * n)
    s_NK, t_NK = drawn(task, n, seed=n, digits=digits)
    c_NR = stats.resamples(n, 30)
    a_KR = stats.auroc(s_NK, t_NK, c_NR)
    absent = 0
    for (k, r), found in np.ndenumerate(a_KR):
        picked = images(c_NR[:, r])
        if len(np.unique(t_NK[picked, k])) < 2:
            absent += 1
            assert np.isnan(found)
        else:
            right = roc_auc_score(t_NK[picked, k], s_NK[picked, k])
            assert found == pytest.approx(right, abs=1e-12)
    if n == 60 and task != "binary-class":
        assert absent  # the rare class is not in every resample


@pytest.mark.parametrize("metric", stats.METRICS)
@pytest.mark.parametrize("task", TASKS)
def test_every_resample_is_judged_as_a_test_set_is(task, metric):
    s_NK, t_NK = drawn(task, 80, seed=1)
    c_NR = stats.resamples(80, 40)
    v_R = stats.score(s_NK, t_NK, task, metric, c_NR)
    for c_N, found in zip(c_NR.T, v_R, strict=True):
        right = dict(classification(s_NK[images(c_N)], t_NK[images(c_N)], task))[metric]
        assert found == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_every_resample_of_one_label_is_judged_as_a_test_set_is(task):
    s_NK, t_NK = drawn(task, 80, seed=1)
    c_NR, seen = stats.resamples(80, 40), 0
    for metric in (f"{name}_{k}" for name in stats.OF_LABEL for k in range(TASKS[task])):
        v_R = stats.score(s_NK, t_NK, task, metric, c_NR)
        for c_N, found in zip(c_NR.T, v_R, strict=True):
            known = dict(classification(s_NK[images(c_N)], t_NK[images(c_N)], task))
            if task != "binary-class" or metric.startswith("recall"):
                assert found == pytest.approx(known.get(metric, np.nan), abs=1e-12, nan_ok=True)
                seen += metric in known
    assert seen > 40


def test_which_auroc_is_of_one_column_alone():
    for task, k in TASKS.items():
        t_NK = np.zeros((3, k))
        assert stats.single(t_NK, task, "auroc") == (1 if k == 2 else None)
        assert [stats.single(t_NK, task, f"auroc_{label}") for label in range(k)] == [*range(k)]
        assert stats.single(t_NK, task, "recall_1") is None
        assert stats.single(t_NK, task, "balanced_accuracy") is None
    assert stats.single(np.zeros((3, 1)), "multi-label, binary-class", "auroc") == 0
    assert stats.of_label("auroc_12") == ("auroc", 12)
    assert stats.of_label("auroc") is stats.of_label("ece_1") is stats.of_label("auroc_x") is None


def test_a_resample_without_any_auroc_has_no_number_and_no_part_in_the_interval():
    t_NK = np.eye(2)[[0, 0, 0, 0, 0, 1]]
    s_NK = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.4, 0.6]])
    v_R = stats.score(s_NK, t_NK, "binary-class", "auroc", stats.resamples(6, 200))
    assert 30 < np.isnan(v_R).sum() < 110  # a resample without the one positive: (5/6)^6, a third
    value, low, high = stats.interval(v_R)
    assert value == 0.8
    assert 0 <= low < value < high <= 1
    assert stats.p_value(v_R - v_R) == 1
    assert np.isnan(stats.interval(np.array([0.5, np.nan]))[1:]).all()


def test_what_cannot_be_resampled_is_a_sentence():
    s_NK, t_NK = drawn("multi-class", 20, 0)
    c_NR = stats.resamples(20, 3)
    with pytest.raises(ValueError, match="no resamples of 'ece': choose from auroc, accuracy"):
        stats.score(s_NK, t_NK, "multi-class", "ece", c_NR)
    with pytest.raises(ValueError, match="no resamples of 'auroc_5': choose from"):
        stats.score(s_NK, t_NK, "multi-class", "auroc_5", c_NR)
    with pytest.raises(ValueError, match="not finite"):
        stats.score(s_NK * np.nan, t_NK, "multi-class", "auroc", c_NR)


# intervals and p


def test_an_interval_is_of_percentiles_and_p_counts_both_tails_and_one_more():
    v_R = np.r_[0.5, np.linspace(0, 1, 1001)]
    assert stats.interval(v_R) == pytest.approx((0.5, 0.025, 0.975))
    assert stats.interval(v_R, 0.9) == pytest.approx((0.5, 0.05, 0.95))
    up_R = np.r_[1.0, np.ones(95), -np.ones(4)]
    assert stats.p_value(up_R) == 2 * 5 / 100
    assert stats.p_value(-up_R) == 2 * 5 / 100
    assert stats.p_value(np.r_[1.0, np.ones(999)]) == 2 / 1000  # never 0
    assert stats.p_value(np.zeros(50)) == 1


@pytest.mark.parametrize("truth", [0.6, 0.75, 0.9])
def test_intervals_of_an_auroc_cover_it(truth):
    v_KR = [
        stats.auroc(s_NK, t_NK, stats.resamples(len(t_NK), 500, seed))
        for seed in range(3)
        for t_NK, s_NK, _ in [studies(truth, 200, 500, seed)]
    ]
    assert 0.93 < covered(np.concatenate(v_KR), truth) < 0.97


def test_intervals_of_an_accuracy_and_of_a_mean_over_classes_cover_them():
    rng = np.random.default_rng(0)

    def study(n):
        t_NK = np.eye(3)[rng.choice(3, n, p=[0.5, 0.3, 0.2])]
        return rng.normal(size=(n, 3)) + 1.2 * t_NK, t_NK

    s_NK, t_NK = study(400_000)
    truth = dict(classification(s_NK, t_NK, "multi-class"))
    found = {"auroc": [], "accuracy": []}
    counts = [stats.resamples(150, 300, seed) for seed in range(4)]
    for i in range(1000):
        s_NK, t_NK = study(150)
        for metric, of in found.items():
            of.append(stats.score(s_NK, t_NK, "multi-class", metric, counts[i % 4]))
    for metric, of in found.items():
        assert 0.93 < covered(np.array(of), truth[metric]) < 0.97


def test_intervals_of_a_difference_cover_it_and_are_narrower_paired():
    paired, apart = [], []
    for seed in range(3):
        t_NK, a_NK, b_NK = studies(0.85, 200, 500, seed, other=0.8)
        c_NR = stats.resamples(200, 500, seed)
        a_KR, b_KR = stats.auroc(a_NK, t_NK, c_NR), stats.auroc(b_NK, t_NK, c_NR)
        paired.append(a_KR - b_KR)
        apart.append(a_KR - stats.auroc(b_NK, t_NK, stats.resamples(200, 500, seed + 50)))
    assert 0.93 < covered(np.concatenate(paired), 0.05) < 0.97
    assert covered(np.concatenate(apart), 0.05) > 0.985  # what other resamples would do


def test_p_is_uniform_where_there_is_no_difference_and_small_where_there_is_one():
    def p(other, seeds=4):
        found = []
        for seed in range(seeds):
            t_NK, a_NK, b_NK = studies(0.8, 200, 500, seed, other=other)
            c_NR = stats.resamples(200, 499, seed)
            d_KR = stats.auroc(a_NK, t_NK, c_NR) - stats.auroc(b_NK, t_NK, c_NR)
            found += [stats.p_value(d_R) for d_R in d_KR]
        return np.array(found)

    null = p(0.8)
    for alpha in (0.01, 0.05, 0.1, 0.3, 0.5, 0.8):
        spread = 4 * np.sqrt(alpha * (1 - alpha) / len(null))
        assert (null <= alpha).mean() == pytest.approx(alpha, abs=spread + 0.01)
    assert (p(0.9, seeds=1) < 0.05).mean() > 0.8


def test_methods_that_may_be_best_hold_the_best_one():
    """The worst case is one true best and many next to it: the observed best is often another."""
    rng, held, sizes = np.random.default_rng(0), [], []
    c_NR = stats.resamples(150, 400)
    for _ in range(300):
        t_N = rng.random(150) < 0.5
        s_NM = rng.normal(size=(150, 8)) + rng.normal(size=(150, 1)) + 1.5 * t_N[:, None]
        v_MR = stats.auroc(s_NM, np.repeat(t_N[:, None], 8, 1), c_NR)
        inside_M = stats.may_be_best(v_MR)
        held.append(inside_M[3])
        sizes.append(inside_M.sum())
        assert inside_M[v_MR[:, 0].argmax()]
    assert 0.93 < np.mean(held) < 0.975
    worse_MR = np.r_[v_MR, v_MR[:1] - 0.2, v_MR[:1]]
    inside_M = stats.may_be_best(worse_MR)
    assert not inside_M[8]  # always 0.2 below the first
    assert inside_M[9] == inside_M[0]  # and one that is the first
    assert stats.may_be_best(v_MR[:1]).all()
    assert stats.may_be_best(np.array([[0.5, np.nan], [0.9, 0.8]])).all()  # no resample of both


# families


def holm_by_its_definition(p):
    order = np.argsort(p)
    return [
        min(1, max((len(p) - j) * p[order[j]] for j in range(list(order).index(i) + 1)))
        for i in range(len(p))
    ]


def bh_by_its_definition(p):
    order = np.argsort(p)
    return [
        min(min(1, len(p) / (j + 1) * p[order[j]]) for j in range(list(order).index(i), len(p)))
        for i in range(len(p))
    ]


def test_adjusted_p_are_those_of_the_definitions():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.02, 0.04, 0.04, 0.02]
    )
    for seed in range(20):
        p = np.random.default_rng(seed).random(seed + 1) ** 3
        assert stats.holm(p) == pytest.approx(holm_by_its_definition(p))
        assert stats.benjamini_hochberg(p) == pytest.approx(bh_by_its_definition(p))
        assert stats.benjamini_hochberg(p) == pytest.approx(scipy.stats.false_discovery_control(p))


# DeLong


def delong_by_pairs(scores_MN, t_N):
    psi_Mud = [(s[t_N][:, None] > s[~t_N]) + 0.5 * (s[t_N][:, None] == s[~t_N]) for s in scores_MN]
    up_Mu, down_Md = np.mean(psi_Mud, axis=2), np.mean(psi_Mud, axis=1)
    return up_Mu.mean(1), np.cov(up_Mu) / t_N.sum() + np.cov(down_Md) / (~t_N).sum()


@pytest.mark.parametrize("digits", [1, 8])
def test_delong_is_the_one_that_looks_at_every_pair(digits):
    rng = np.random.default_rng(digits)
    t_N = rng.random(90) < 0.3
    s_MN = np.round(rng.normal(size=(3, 90)) + rng.normal(size=90) + t_N, digits)
    auroc_M, covariance_MM = stats.delong(s_MN, t_N)
    right_M, right_MM = delong_by_pairs(s_MN, t_N)
    assert auroc_M == pytest.approx(right_M, abs=1e-12)
    assert covariance_MM == pytest.approx(right_MM, abs=1e-12)
    d = right_M[0] - right_M[1]
    z = d / np.sqrt(np.array([1, -1, 0]) @ right_MM @ np.array([1, -1, 0]))
    assert stats.delong_p(s_MN[0], s_MN[1], t_N) == pytest.approx(2 * NormalDist().cdf(-abs(z)))
    assert stats.delong_p(s_MN[0], s_MN[0] * 2 + 1, t_N) == 1
    with pytest.raises(ValueError, match="a difference of 1 with no variance has no p"):
        stats.delong_p(t_N + 0.0, 1.0 - t_N, t_N)
    with pytest.raises(ValueError, match="2 at least"):
        stats.delong(s_MN, np.arange(90) == 3)


def test_placements_are_shares_of_pairs_whose_mean_is_the_auroc_on_either_side():
    t_N, s_N = np.array([1, 0, 0, 1, 0]), np.array([0.9, 0.5, 0.1, 0.5, 0.7])
    (p_N,) = stats.placements(s_N, t_N)
    assert p_N == pytest.approx([1, 0.75, 1, 0.5, 0.5])
    assert p_N[t_N == 1].mean() == p_N[t_N == 0].mean() == roc_auc_score(t_N, s_N)


def test_a_contrast_of_means_over_seeds_has_the_variance_of_the_whole_matrix():
    """Three seeds of one method, two of the other, all on the same images."""
    rng, w_M = np.random.default_rng(4), np.r_[np.full(3, 1 / 3), -np.full(2, 1 / 2)]
    t_N = rng.random(300) < 0.4
    s_MN = 2 * rng.normal(size=300) + rng.normal(size=(5, 300)) + 1.2 * t_N
    s_MN[:3] += 0.1 * t_N
    p_MN = stats.placements(s_MN, t_N)
    auroc_M, covariance_MM = stats.delong(s_MN, t_N)
    z = w_M @ auroc_M / np.sqrt(w_M @ covariance_MM @ w_M)
    found = stats.contrast_p(w_M @ p_MN, t_N)
    assert found == pytest.approx(2 * NormalDist().cdf(-abs(z)), abs=1e-12)
    assert 0.001 < found < 0.05
    d_R = w_M @ stats.auroc(s_MN.T, np.tile(t_N, (5, 1)).T, stats.resamples(300, 4000))
    assert stats.p_value(d_R) == pytest.approx(found, abs=0.01)
    assert d_R[1:].std() == pytest.approx(np.sqrt(w_M @ covariance_MM @ w_M), rel=0.05)
    pair = stats.contrast_p(p_MN[0] - p_MN[3], t_N)
    assert pair == pytest.approx(stats.delong_p(s_MN[0], s_MN[3], t_N))
    with pytest.raises(ValueError, match="1 positives and 299 negatives: 2 at least"):
        stats.contrast_p(p_MN[0], np.arange(300) == 3)


def test_delong_and_the_bootstrap_agree():
    t_NK, a_NK, b_NK = studies(0.85, 600, 8, seed=1, other=0.82)
    c_NR = stats.resamples(600, 2000)
    a_KR, b_KR = stats.auroc(a_NK, t_NK, c_NR), stats.auroc(b_NK, t_NK, c_NR)
    for k in range(8):
        found = stats.interval(a_KR[k])
        right = stats.delong_interval(a_NK[:, k], t_NK[:, k])
        assert found == pytest.approx(right, abs=0.005)
        p = stats.delong_p(a_NK[:, k], b_NK[:, k], t_NK[:, k])
        assert stats.p_value(a_KR[k] - b_KR[k]) == pytest.approx(p, abs=0.05)
    assert stats.delong_interval([1, 2, 3, 4], [0, 0, 1, 1]) == (1, 1, 1)


# across datasets


def test_ranks_critical_difference_and_groups_are_demsars():
    v_DM = [[0.9, 0.8, 0.9, 0.1], [0.5, 0.7, 0.6, 0.2]]
    assert stats.mean_ranks(v_DM) == pytest.approx([2.25, 2, 1.75, 4])
    published_M = [3.143, 2.000, 2.893, 1.964]  # four methods on 14 datasets, his section 3.2.3
    assert stats.nemenyi(4, 14, 0.10) == pytest.approx(1.12, abs=0.005)
    assert stats.nemenyi(4, 14) == pytest.approx(1.25, abs=0.005)
    assert stats.nemenyi(2, 10) == pytest.approx(1.960 / np.sqrt(10), abs=1e-3)
    assert stats.groups(published_M, stats.nemenyi(4, 14, 0.10)) == [(3, 1, 2), (2, 0)]


def test_friedman_is_its_formula_and_uniform_where_no_method_differs(monkeypatch):
    rng = np.random.default_rng(0)
    v_DM = rng.random((9, 5))
    rank_M = stats.mean_ranks(v_DM)
    chi2 = 12 * 9 / (5 * 6) * (np.sum(rank_M**2) - 5 * 36 / 4)
    f = 8 * chi2 / (9 * 4 - chi2)
    found = stats.friedman(v_DM)
    assert found == pytest.approx(
        (chi2, scipy.stats.chi2.sf(chi2, 4), f, scipy.stats.f.sf(f, 4, 32), found.p_permuted)
    )
    assert found.p_permuted == pytest.approx(found.p_f, abs=0.02)
    monkeypatch.setattr(stats, "ORDERS", 100)  # of p_permuted, which is not asked for here
    p = np.array([stats.friedman(rng.random((9, 5))).p_f for _ in range(800)])
    for alpha in (0.05, 0.2, 0.5):
        assert (p <= alpha).mean() == pytest.approx(alpha, abs=0.05)
    assert stats.friedman(np.ones((6, 3))) == (0, 1, 0, 1, 1)
    with pytest.raises(ValueError, match="3 and 2 at least"):
        stats.friedman(v_DM[:, :2])


def test_friedmans_p_on_few_datasets_is_the_share_of_orders(monkeypatch):
    alike = np.array([[3, 2, 1.0]])
    assert stats.friedman(alike.repeat(3, 0)).p_f == 0
    for datasets in (2, 3, 4):  # where the first ranks as it does, the others do in one of 6
        found = stats.friedman(alike.repeat(datasets, 0)).p_permuted
        assert found == pytest.approx(6.0 ** -(datasets - 1))
    for datasets in (9, 30):  # drawn; what no draw has shown is still not impossible
        assert 0 < stats.friedman(alike.repeat(datasets, 0)).p_permuted < 1e-4
    v_DM = np.array([[0.1, 0.5, 0.5, 0.9], [0.2, 0.1, 0.6, 0.8], [0.7, 0.3, 0.3, 0.3]])
    exact = stats.friedman(v_DM).p_permuted
    every = [
        np.sum(np.sum(each, axis=0) ** 2)
        for each in itertools.product(
            *map(itertools.permutations, scipy.stats.rankdata(v_DM, axis=1))
        )
    ]
    seen = np.sum(scipy.stats.rankdata(v_DM, axis=1).sum(0) ** 2)
    assert exact == pytest.approx(np.mean(np.array(every) >= seen - 1e-9))
    p = [stats.friedman(np.random.default_rng(i).random((3, 3))).p_permuted for i in range(400)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05  # 1/36, where p_f calls 1 in 6 significant
    monkeypatch.setattr(stats, "factorial", lambda m: 10**9)
    assert stats.friedman(v_DM).p_permuted == pytest.approx(exact, abs=0.01)


def test_groups_are_the_largest_runs_that_cannot_be_told_apart():
    assert stats.groups([1.0, 4.0, 2.0, 3.0], 1.5) == [(0, 2), (2, 3), (3, 1)]
    assert stats.groups([1.0, 4.0, 2.0, 3.0], 9) == [(0, 2, 3, 1)]
    assert stats.groups([1.0, 4.0, 2.0], 0.5) == [(0,), (2,), (1,)]
    assert stats.groups([2.0, 1.0, 2.0], 1.0) == [(1,), (0, 2)]  # as much as it differs


@pytest.mark.parametrize("d", [[3, 1, 4, 2, -5, 6], [1, 1, 2, 2, -2, 3, 3], [0, 1, 2, 3, 0, 4]])
def test_wilcoxon_of_few_datasets_is_exact_with_ties_and_zeros(d):
    d_D = np.array([x for x in d if x], float)
    rank_D = scipy.stats.rankdata(abs(d_D))
    sums = np.array([rank_D @ signs for signs in product([-1, 1], repeat=len(d_D))])
    right = np.mean(abs(sums) >= abs(rank_D @ np.sign(d_D)) - 1e-9)
    assert stats.wilcoxon(np.array(d) + 7, np.full(len(d), 7)) == pytest.approx(right)
    assert stats.wilcoxon(d, d) == 1


# variance components


def seeds(rng, sizes, sd, crossed):
    """{(pretraining, subset, head) seed: value} of known spread: what (p, s, ps, h) add."""
    P, S, H = sizes
    a_P, ab_PS, e_PSH = rng.normal(size=P), rng.normal(size=(P, S)), rng.normal(size=(P, S, H))
    b_PS = rng.normal(size=S) if crossed else 0
    y = sd[0] * a_P[:, None, None] + (sd[1] * b_PS + sd[2] * ab_PS)[..., None] + sd[3] * e_PSH
    return {key: float(v) for key, v in np.ndenumerate(y)}


@pytest.mark.parametrize("crossed", [True, False])
def test_components_find_the_variances_that_were_put_in(crossed):
    rng, sd = np.random.default_rng(0), (3.0, 2.0, 1.5, 1.0)
    found = np.array([
        stats.components(seeds(rng, (8, 6, 3), sd, crossed), crossed)[:4] for _ in range(400)
    ]).mean(0)  # fmt: skip
    right = [9, 4, 2.25, 1] if crossed else [9, 2.25, np.nan, 1]
    assert found == pytest.approx(right, rel=0.1, nan_ok=True)


def test_components_are_differences_of_neighbouring_mean_squares():
    v = seeds(np.random.default_rng(3), (3, 4, 2), (3.0, 2.0, 1.5, 1.0), crossed=True)
    y = np.array(list(v.values())).reshape(3, 4, 2)
    cells = list(product(range(3), range(4)))
    ms_p = 8 * sum((y[p].mean() - y.mean()) ** 2 for p in range(3)) / 2
    ms_s = 6 * sum((y[:, s].mean() - y.mean()) ** 2 for s in range(4)) / 3
    ms_h = sum((y[p, s, h] - y[p, s].mean()) ** 2 for p, s in cells for h in range(2)) / 12
    rest = [y[p, s].mean() - y[p].mean() - y[:, s].mean() + y.mean() for p, s in cells]
    ms_ps = 2 * np.square(rest).sum() / 6
    right = (ms_p - ms_ps) / 8, (ms_s - ms_ps) / 6, (ms_ps - ms_h) / 2, ms_h
    assert min(right) > 0
    assert stats.components(v)[:4] == pytest.approx(right)
    within = 2 * sum((y[p, s].mean() - y[p].mean()) ** 2 for p, s in cells) / 9
    right = (ms_p - within) / 8, (within - ms_h) / 2, np.nan, ms_h
    assert stats.components(v, crossed=False)[:4] == pytest.approx(right, nan_ok=True)


def test_components_by_hand_what_one_seed_cannot_show_and_sampling_apart():
    v = {(p, s, 0): 10.0 * p + s for p in range(2) for s in range(2)}  # exactly additive
    found = stats.components(v)
    assert found[:3] == pytest.approx((50, 0.5, 0))
    assert np.isnan([found.head, found.sampling]).all()
    assert stats.components(v, crossed=False)[:2] == pytest.approx((49.75, 0.5))
    seeds_only = stats.components({(p, 0, 0): float(p) for p in range(5)})
    assert seeds_only.pretraining == pytest.approx(2.5)
    assert np.isnan(seeds_only[1:5]).all()
    heads_only = stats.components({(0, 0, h): float(h) for h in range(5)})
    assert heads_only.head == pytest.approx(2.5)
    assert np.isnan(heads_only[:3]).all()
    noise_R = np.random.default_rng(0).normal(size=1000)
    sampled = stats.components({key: np.r_[x, x + noise_R] for key, x in v.items()})
    assert sampled[:3] == found[:3]
    assert sampled.sampling == pytest.approx(noise_R.var(ddof=1))


def test_a_resample_without_a_number_is_left_out_of_the_sampling():
    noise_R = np.random.default_rng(0).normal(size=1000)
    found = stats.components({(p, 0, 0): np.r_[p, noise_R, np.nan] for p in range(2)})
    assert found.sampling == pytest.approx(noise_R.var(ddof=1))


def test_a_variance_below_zero_is_zero_and_said():
    same = {(p, s, 0): float(s) + 0.1 * (p == s) for p in range(3) for s in range(3)}
    found = stats.components(same)
    assert (found.pretraining, found.cut) == (0, ("pretraining",))
    assert stats.components({(0, 0, 0): 1.0}).cut == ()


def test_an_unbalanced_design_is_refused():
    v = {(p, s, 0): 1.0 for p in range(3) for s in range(3)}
    del v[2, 2, 0]
    with pytest.raises(ValueError, match="run what is missing"):
        stats.components(v)
    v[2, 5, 0] = 1.0  # as many, but others
    with pytest.raises(ValueError, match="the same subset seeds"):
        stats.components(v)
    assert stats.components(v, crossed=False).pretraining == 0
    with pytest.raises(ValueError, match="not finite"):
        stats.components({**v, (2, 5, 0): np.nan}, crossed=False)


# how many labels

F = [0.01, 0.1, 1.0]


def needed(curve, goal):
    return stats.labels_needed(F, np.array(curve)[:, None], np.array([goal]))[0]


def test_labels_needed_lie_on_the_line_in_log10():
    assert needed([0.7, 0.8, 0.9], 0.85).fraction == pytest.approx(10**-0.5)
    assert needed([0.7, 0.8, 0.9], 0.8) == (pytest.approx(0.1), False)
    assert needed([0.7, 0.8, 0.9], 0.9) == (1.0, False)
    assert needed([0.7, 0.8, 0.9], 0.7) == (0.01, True)
    assert needed([0.7, 0.8, 0.9], 0.2) == (0.01, True)
    assert needed([0.7, 0.8, 0.9], 0.91) == (None, False)
    assert needed([0.8, 0.8, 0.8], 0.8) == (0.01, True)


def test_reached_is_what_stays_reached():
    assert needed([0.9, 0.7, 0.9], 0.8).fraction == pytest.approx(10**-0.5)  # the last crossing
    assert needed([0.7, 0.9, 0.7], 0.8) == (None, False)
    assert needed([0.9, 0.9, 0.7], 0.8) == (None, False)


def test_an_interval_of_labels_is_paired_and_may_end_at_not_reached():
    rng = np.random.default_rng(0)
    luck_R = np.r_[0, rng.normal(size=1000)]  # of the test images: curve and goal share it
    curve_FR = np.array([[0.7], [0.8], [0.9]]) + 0.05 * luck_R
    found = stats.labels_needed(F, curve_FR, 0.85 + 0.05 * luck_R)
    assert [end.fraction for end in found] == pytest.approx([10**-0.5] * 3)
    value, low, high = stats.labels_needed(F, curve_FR, np.full(1001, 0.85))
    assert value.fraction == pytest.approx(10**-0.5)
    assert low == (0.01, True) or low.fraction < 0.1
    assert high == (None, False)
    small_FR = np.array([[0.7], [0.8], [0.9]]) + 0.01 * luck_R
    _, low, high = stats.labels_needed(F, small_FR, np.full(1001, 0.85))
    tail = 0.1 * 1.96  # of log10, where a tenth is worth 0.1
    assert np.log10([low.fraction, high.fraction]) == pytest.approx(
        [-0.5 - tail, -0.5 + tail], abs=0.03
    )
    lost_FR = np.c_[curve_FR, np.full((3, 9), np.nan)]  # resamples without a number
    assert stats.labels_needed(F, lost_FR, np.r_[0.85 + 0.05 * luck_R, np.ones(9)])[1].fraction


def test_curves_that_are_none_are_refused():
    with pytest.raises(ValueError, match="must ascend"):
        stats.labels_needed([0.1, 0.01], np.ones((2, 1)), np.ones(1))
    with pytest.raises(ValueError, match="leave out the fraction"):
        stats.labels_needed(F, np.array([[0.7], [np.nan], [0.9]]), np.ones(1))


def test_a_ratio_of_no_clean_error_is_finite_and_stays_in_the_interval():
    """One of fifty clean images is wrong: a third of the resamples are without it."""
    t_NK = np.eye(2)[np.arange(50) % 2]
    clean_N = np.uint8(np.arange(50) % 2)
    clean_N[0] = 1
    code_N5 = np.repeat(clean_N[:, None], 5, axis=1)
    code_N5[2:12] = 1
    c_NR = stats.resamples(50, 300)
    of = {k: stats.error(k, code_N5, clean_N, t_NK, "binary-class", c_NR) for k in stats.ERRORS}
    v_R, without = of["error_ratio"], c_NR[0] == 0
    assert v_R[0] == pytest.approx(6)
    assert 50 < np.count_nonzero(without) < 150
    assert np.all(of["clean_error"][without] == 0)
    assert v_R[without] == pytest.approx(of["error"][without] / 0.005)  # of one image it is 0.02
    assert v_R[~without] == pytest.approx(of["error"][~without] / of["clean_error"][~without])
    assert stats.interval(v_R).high > 1.5 * stats.interval(v_R[~without]).high


def test_intervals_of_a_ratio_to_a_small_clean_error_cover_it():
    """Left out, resamples whose clean error is below 0.02 leave a coverage of 0.7."""
    rng, y_N, held = np.random.default_rng(0), np.arange(156) % 2, []
    c_NR = stats.resamples(156, 200)
    while len(held) < 200:
        wrong_N = rng.random(156) < 0.021
        more_N = wrong_N | (rng.random(156) < 0.079 / 0.979)
        codes = (y_N ^ more_N)[:, None], y_N ^ wrong_N
        clean, ratio = (
            stats.error(kind, *codes, np.eye(2)[y_N], "binary-class", c_NR)
            for kind in ("clean_error", "error_ratio")
        )
        if clean[0] >= 0.02:  # or its row is absent
            _, low, high = stats.interval(ratio)
            held.append(low <= 0.1 / 0.021 <= high)
    assert np.mean(held) > 0.92


def test_only_errors_are_better_when_they_are_smaller():
    assert [stats.sign(m) for m in ("error", "error_ratio:jpeg", "clean_error")] == [-1] * 3
    assert [stats.sign(m) for m in ("auroc", "knn/auroc:near", "accuracy", "recall_1")] == [1] * 4
