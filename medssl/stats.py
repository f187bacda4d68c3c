"""Would this number stand on other test images, with other seeds, on other datasets?

    resamples(N) -> c_NR -> score(scores_NK, t_NK, task, metric, c_NR) -> v_R -> interval, p_value

A resample is a column of counts, how often it holds each test image, and column 0 is the test set
itself: whatever is computed column by column (a mean over seeds, a difference of two encoders) has
its value at [0] and its resamples behind it. (seed, N) alone decide the counts, in any process and
on any machine: results of one test set stay paired, whenever they are compared.

What a reader would get wrong: an interval of v_R and the p of a difference are about test images,
for encoders as they are; of seeds, `components` speaks. Images are drawn one by one: where many are
of one patient (Organ*MNIST's slices are, and MedMNIST does not say of whom) intervals are too
narrow. A resample without a positive or without a negative of a label has no AUROC of it, and
leaves that label out of its mean; one that has none at all is left out of the interval. No p is
below 2 / (resamples + 1), so a family of m needs 40 m resamples before Holm finds anything at 0.05.
Efron & Tibshirani 1993, ch. 13 (percentiles); Davison & Hinkley 1997, ch. 4 (the + 1)
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np
import scipy.stats
from scipy.sparse import csr_array

from medssl.metrics import columns, decided, decoded

ORDERS = 50_000  # of ranks, of which Friedman's p is made; no p is below 1 / 50,001
CHUNK = 2**19  # counts at a time; sets memory and speed, never the answer
METRICS = "auroc", "accuracy", "balanced_accuracy"
OF_LABEL = "auroc", "recall"  # of a single one, by its number: auroc_3
DETECTION = r"(?:(?P<score>\w+)/)?auroc(?::(?P<of>.+))?"  # auroc, knn/auroc:near, knn/auroc:SET
ERRORS = "error", "clean_error", "added_error", "error_ratio"  # of `robustness`: error:jpeg:3, ...
ERROR = rf"(?P<kind>{'|'.join(ERRORS)})(?::(?P<of>\w+))?(?::(?P<at>[1-5]))?"
CHOICES = *METRICS, *(f"{name}_K" for name in OF_LABEL), "SCORE/auroc", "SCORE/auroc:SET"
CHOICES += *ERRORS, "error:CORRUPTION", "error:CORRUPTION:SEVERITY"

# N test images, K classes, R the test set and its resamples, M methods, D datasets,
# C corruptions at a severity, S places on a ROC curve, F label fractions; P pretraining, S subset,
# H head seeds in `components`


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def resamples(
    n: int, count: int = 1000, seed: int = 0, strata_N: np.ndarray | None = None
) -> np.ndarray:
    """c_NR (n, 1 + count) uint16: how often each resample holds each image; column 0 is ones.

    With `strata_N` images are drawn within their stratum, whose size never changes; without, as the
    study does. The first resamples of a larger count are those of a smaller one. Drawn from the raw
    stream of PCG64, the part of NumPy's randomness that no version changes. ValueError if n is 0.
    """
    if n < 1 or count < 1:
        raise ValueError(f"{count} resamples of {n} images: both must be 1 or more")
    strata_N = np.zeros(n) if strata_N is None else np.asarray(strata_N)
    member_N = np.argsort(strata_N, kind="stable")
    sizes = np.unique(strata_N, return_counts=True)[1]
    size_N = np.repeat(sizes, sizes).astype(np.uint64)
    first_N = np.repeat(np.cumsum(sizes) - sizes, sizes).astype(np.uint64)
    bits, high = np.random.PCG64(np.random.SeedSequence((seed, n))), np.uint64(32)
    c_NR = np.ones((n, 1 + count), np.uint16)
    for r in range(1, 1 + count):  # 32 bits scaled to a size: uneven by size / 2^32, 4e-6
        drawn_N = first_N + ((bits.random_raw(n) >> high) * size_N >> high)
        c_NR[:, r] = np.bincount(member_N[drawn_N], minlength=n)
    return c_NR


def auroc(scores_NK: np.ndarray, t_NK: np.ndarray, c_NR: np.ndarray) -> np.ndarray:
    """a_KR: of every label and resample, exact, a tie counting one half; NaN where there is none.

    Each label is sorted once. The distinct scores of its rarer side, say the positives, cut the
    order into places 2i (between two of them) and 2i + 1 (level with one); what a resample has in
    each place is a sparse product.
    """
    cut = []
    for s_N, t_N in zip(np.asarray(scores_NK).T, np.asarray(t_NK).T > 0.5, strict=True):
        if 2 * np.count_nonzero(t_N) > len(t_N):  # the same number, and fewer places
            s_N, t_N = -s_N, ~t_N
        edges = np.unique(s_N[t_N])
        place_N = np.searchsorted(edges, s_N, "left") + np.searchsorted(edges, s_N, "right")
        up_N, down_N = np.flatnonzero(t_N), np.flatnonzero(~t_N)
        cut.append((
            _sums(place_N[up_N] // 2, up_N, (len(edges), len(s_N))),
            _sums(place_N[down_N], down_N, (2 * len(edges) + 1, len(s_N))),
        ))  # fmt: skip
    a_KR = np.full((len(cut), c_NR.shape[1]), np.nan)
    for at, c_Nr in _chunks(c_NR):
        for a_R, (up_SN, down_SN) in zip(a_KR, cut, strict=True):
            up_Sr, below_Sr = up_SN @ c_Nr, np.cumsum(down_SN @ c_Nr, axis=0)
            wins_r = np.einsum("sr,sr->r", up_Sr, below_Sr[:-1:2] + below_Sr[1::2]) / 2
            pairs_r = up_Sr.sum(0) * below_Sr[-1]
            np.divide(wins_r, pairs_r, out=a_R[at], where=pairs_r > 0)
    return a_KR


def score(
    scores_NK: np.ndarray, t_NK: np.ndarray, task: str, metric: str, c_NR: np.ndarray
) -> np.ndarray:
    """v_R: `metric` of every resample, as `metrics.classification` defines it for the task."""
    s, t, classes = columns(scores_NK, t_NK, task)
    hit_NK, many = decided(s, task), task.startswith("multi-label")
    if (of := of_label(metric)) and of[1] < t.shape[1]:
        name, only = of[0], slice(of[1], of[1] + 1)
        if name == "auroc":
            return auroc(s[:, only], t[:, only], c_NR)[0]
        return _share(hit_NK[:, only], t[:, only], c_NR)[0]
    if metric == "auroc":
        return _mean(auroc(s[:, classes], t[:, classes], c_NR))
    if metric == "accuracy":
        right_N = (hit_NK == t).mean(1) if many else (hit_NK & t).any(1)
        return _count(right_N[:, None], c_NR)[0] / len(t)
    if metric == "balanced_accuracy":
        return _balanced(hit_NK, t, many, c_NR)
    raise ValueError(f"no resamples of {metric!r}: choose from {', '.join(CHOICES)}")


def of_label(metric: str) -> tuple[str, int] | None:
    """("auroc", 3) of "auroc_3"; None for what is of all labels, or cannot be resampled."""
    name, _, label = metric.rpartition("_")
    return (name, int(label)) if name in OF_LABEL and label.isdecimal() else None


def of_detection(
    metric: str, kept: Mapping[str, np.ndarray], settings: str
) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """The scores of the test images, and of each set that they are told from, whose mean AUROC the
    metric is; None for any other metric, and where `ood` has not kept them. `settings` are its own.
    """
    asked = re.fullmatch(DETECTION, metric)
    name = (asked and asked["score"]) or "mahalanobis"
    if not asked or name not in kept:
        return None
    out = {at.partition(":")[2]: s for at, s in kept.items() if at.startswith(f"{name}:")}
    if of := asked["of"]:
        group = json.loads(settings).get(of, [of])
        out = {elsewhere: s_M for elsewhere, s_M in out.items() if elsewhere in group}
    return (kept[name], out) if out else None


def of_error(
    metric: str, kept: Mapping[str, np.ndarray]
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Which of ERRORS the metric is, what was decided under its corruptions (N, C), and without any
    (N,); None for any other metric, and where `robustness` has not kept it.
    """
    asked = re.fullmatch(ERROR, metric)
    if not asked or "decided" not in kept:
        return None
    names = [name for name in kept if re.fullmatch(f"decided_{asked['of'] or '.+'}", name)]
    if not names:
        return None
    code_NC = np.concatenate([kept[name] for name in names], axis=1)
    if asked["at"]:
        code_NC = code_NC[:, [int(asked["at"]) - 1]]
    return asked["kind"], code_NC, kept["decided"]


def error(
    kind: str,
    code_NC: np.ndarray,
    clean_N: np.ndarray,
    t_NK: np.ndarray,
    task: str,
    c_NR: np.ndarray,
) -> np.ndarray:
    """v_R: what `of_error` found, of every resample; an error is 1 - balanced accuracy.

    A recall counts images, so the mean error under many corruptions is the error of how often each
    image is given each label: one product, however many there are. A ratio is of the resample's own
    clean error. Where that is 0 it counts as 1 / (2 N K), no more than an image could make it:
    without such resamples the interval would be cut short at its upper end.
    """
    t, many = np.asarray(t_NK) > 0.5, task.startswith("multi-label")

    def of(code_NC: np.ndarray) -> np.ndarray:
        hits_NK = sum(decoded(code_N, t.shape[1], task).astype(int) for code_N in code_NC.T)
        return 1 - _balanced(hits_NK / code_NC.shape[1], t, many, c_NR)

    e_R, clean_R = of(code_NC), of(clean_N[:, None])
    return {
        "error": e_R,
        "clean_error": clean_R,
        "added_error": e_R - clean_R,
        "error_ratio": e_R / np.maximum(clean_R, 1 / (2 * t.size)),
    }[kind]


def sign(metric: str) -> int:
    """-1 of what is better the smaller it is."""
    return -1 if re.fullmatch(ERROR, metric) else 1


def single(t_NK: np.ndarray, task: str, metric: str) -> int | None:
    """Which column's AUROC the metric is; None if it is a mean of several, or no AUROC."""
    name, label = of_label(metric) or (metric, None)
    asked = columns(t_NK, t_NK, task)[2] if label is None else [label]
    return asked[0] if name == "auroc" and len(asked) == 1 else None


def interval(v_R: np.ndarray, level: float = 0.95) -> Interval:
    """v_R[0] and the percentiles of the resamples behind it; NaN where no resample has a number."""
    seen = v_R[1:][~np.isnan(v_R[1:])]
    ends = np.quantile(seen, [(1 - level) / 2, (1 + level) / 2]) if len(seen) else [np.nan] * 2
    return Interval(float(v_R[0]), *map(float, ends))


def p_value(d_R: np.ndarray) -> float:
    """Two-sided p of a paired difference of 0: twice the smaller tail, each with one resample more.

    A resample with no difference counts in both tails, so that p of an encoder and itself is 1.
    """
    seen = d_R[1:][~np.isnan(d_R[1:])]
    tail = 1 + min(np.count_nonzero(seen <= 0), np.count_nonzero(seen >= 0))
    return float(min(1.0, 2 * tail / (len(seen) + 1)))


def may_be_best(v_MR: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Which of M methods could be the best one: a set that holds the true best with `level`.

    A method is out if another is further above it than the largest of its M - 1 differences strays
    by chance in 19 of 20 resamples. Comparing all with the observed best, chosen by the same
    images, would leave out the true best too often. Hsu 1984, Annals of Statistics 12
    """
    v_MR = v_MR[:, ~np.isnan(v_MR).any(0)]
    if v_MR.shape[1] < 2:  # nothing is known of how they stray
        return np.ones(len(v_MR), bool)
    inside = np.ones(len(v_MR), bool)
    for i, v_R in enumerate(v_MR):
        d_MR = np.delete(v_MR - v_R, i, axis=0)
        stray_MR = d_MR[:, 1:] - d_MR[:, :1]
        spread_M = np.sqrt(np.mean(stray_MR**2, axis=1))
        worst_R = np.max(stray_MR / np.where(spread_M > 0, spread_M, 1)[:, None], 0, initial=0)
        inside[i] = np.all(d_MR[:, 0] <= np.quantile(worst_R, level) * spread_M)
    return inside


def holm(p_M: Sequence[float]) -> np.ndarray:
    """Adjusted p: those up to alpha hold one false find or more in a share alpha of families."""
    order, p = np.argsort(p_M), np.sort(p_M)
    return _placed(np.maximum.accumulate(p * np.arange(len(p), 0, -1)), order)


def benjamini_hochberg(p_M: Sequence[float]) -> np.ndarray:
    """Adjusted p: a share alpha of those up to alpha is expected to be false finds."""
    order, p = np.argsort(p_M), np.sort(p_M)
    adjusted = p * len(p) / np.arange(1, len(p) + 1)
    return _placed(np.minimum.accumulate(adjusted[::-1])[::-1], order)


def placements(scores_MN: np.ndarray, t_N: np.ndarray) -> np.ndarray:
    """p_MN: of the images on the other side of the truth, the share that each is right about.

    Their mean over the positives is the AUROC, and so it is over the negatives. What is linear in
    AUROCs is so in placements, which is all that DeLong's variance needs.
    """
    scores_MN, t_N = np.atleast_2d(scores_MN), np.asarray(t_N) > 0.5
    p_MN = np.empty(scores_MN.shape)
    rank_MN = scipy.stats.rankdata(scores_MN, axis=1)
    for own_N in (t_N, ~t_N):
        below_Mn = rank_MN[:, own_N] - scipy.stats.rankdata(scores_MN[:, own_N], axis=1)
        p_MN[:, own_N] = below_Mn / max(1, np.count_nonzero(~own_N))
    p_MN[:, ~t_N] = 1 - p_MN[:, ~t_N]
    return p_MN


def delong(scores_MN: np.ndarray, t_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (M,) of M methods on the same images, and their covariance (M, M), without resamples.

    ValueError for fewer than two positives or negatives, which show no variance.
    DeLong et al. 1988; midranks as in Sun & Xu 2014, IEEE Signal Process. Lett. 21
    """
    t_N = np.asarray(t_N) > 0.5
    return _delong(placements(scores_MN, t_N), t_N)


def delong_interval(scores_N: np.ndarray, t_N: np.ndarray, level: float = 0.95) -> Interval:
    """AUROC and its normal interval, cut at 0 and 1."""
    (value,), ((variance,),) = delong(scores_N, t_N)
    reach = scipy.stats.norm.ppf((1 + level) / 2) * np.sqrt(variance)
    return Interval(float(value), float(max(0, value - reach)), float(min(1, value + reach)))


def delong_p(scores_N: np.ndarray, other_N: np.ndarray, t_N: np.ndarray) -> float:
    """Two-sided p of two AUROCs on the same images; 1 where they never differ.

    ValueError as for `contrast_p`.
    """
    a_N, b_N = placements(np.stack([scores_N, other_N]), t_N)
    return contrast_p(a_N - b_N, t_N)


def contrast_p(d_N: np.ndarray, t_N: np.ndarray) -> float:
    """DeLong's two-sided p of a linear contrast of AUROCs, which `d_N` is of their placements.

    Of two means over seeds, say: d_N = p_SN.mean(0) - q_SN.mean(0) has the variance that the whole
    covariance matrix gives, of all seeds of both. ValueError as for `delong`, and where all images
    differ alike: no variance is seen then, which is not to say that there is none.
    """
    (d,), ((variance,),) = _delong(d_N, np.asarray(t_N) > 0.5)
    if variance <= 1e-15:
        if abs(d) > 1e-12:
            raise ValueError(f"a difference of {d:.3g} with no variance has no p: use resamples")
        return 1.0
    return float(2 * scipy.stats.norm.sf(abs(d) / np.sqrt(variance)))


class Friedman(NamedTuple):
    chi2: float
    p: float  # of chi2, too cautious for few datasets
    f: float  # Iman and Davenport's
    p_f: float  # of f; 0 where all datasets rank alike, which by chance is not so rare
    p_permuted: float  # the one to report


def mean_ranks(v_DM: np.ndarray) -> np.ndarray:
    """(M,) of methods over datasets: 1 is the best (largest value), ties share theirs."""
    return scipy.stats.rankdata(-np.asarray(v_DM), axis=1).mean(0)


def friedman(v_DM: np.ndarray) -> Friedman:
    """Do any of three or more methods differ in rank over datasets? ValueError for fewer.

    Both approximations fail on few datasets: three that rank three methods alike have p_f = 0,
    where one in 36 does so by chance. p_permuted is exact, or of ORDERS draws, and ties are as
    they are.
    Iman & Davenport 1980; Demsar 2006, https://jmlr.org/papers/v7/demsar06a.html
    """
    D, M = np.shape(v_DM)
    if D < 2 or M < 3:
        raise ValueError(f"{M} methods on {D} datasets: 3 and 2 at least; two have `wilcoxon`")
    if np.all(np.ptp(v_DM, axis=1) == 0):
        return Friedman(0.0, 1.0, 0.0, 1.0, 1.0)
    chi2, p = scipy.stats.friedmanchisquare(*np.transpose(v_DM))
    left = D * (M - 1) - chi2
    f = (D - 1) * chi2 / left if left > 1e-9 else np.inf  # every dataset ranks them the same
    p_f = scipy.stats.f.sf(f, M - 1, (M - 1) * (D - 1))
    p_permuted = _permuted(scipy.stats.rankdata(v_DM, axis=1))
    return Friedman(float(chi2), float(p), float(f), float(p_f), p_permuted)


def _permuted(rank_DM: np.ndarray) -> float:
    """Of all orders of the ranks within each dataset, the share whose rank sums are as far apart.

    The first dataset keeps its order: which method is which does not matter. Where there are too
    many, drawn ones, and one more.
    """
    D, M = rank_DM.shape
    least = np.sum(rank_DM.sum(0) ** 2) - 1e-6
    if factorial(M) ** (D - 1) <= ORDERS:
        sum_OM = rank_DM[:1]
        for rank_M in rank_DM[1:]:
            order_OM = np.array(list(permutations(rank_M)))
            sum_OM = (sum_OM[:, None] + order_OM).reshape(-1, M)
        return float(np.mean(np.sum(sum_OM**2, axis=1) >= least))
    rng, count = np.random.Generator(np.random.PCG64(0)), 0
    for _ in range(ORDERS // 1000):
        drawn_ODM = rng.permuted(np.broadcast_to(rank_DM, (1000, D, M)), axis=2)
        count += np.count_nonzero(np.sum(drawn_ODM.sum(1) ** 2, axis=1) >= least)
    return (1 + count) / (1 + ORDERS)


def nemenyi(methods: int, datasets: int, alpha: float = 0.05) -> float:
    """The critical difference: mean ranks that differ by as much differ at `alpha`."""
    q = scipy.stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def groups(rank_M: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """Methods in order of rank, cut into the largest runs that span less than the difference.

    Runs overlap: that a and b, and b and c, cannot be told apart does not say so of a and c.
    """
    order, runs = np.argsort(rank_M, kind="stable"), []
    ranks = np.asarray(rank_M)[order]
    for start in range(len(ranks)):
        end = start + int(np.count_nonzero(ranks[start:] - ranks[start] < difference))
        if not runs or end > runs[-1][1]:
            runs.append((start, max(end, start + 1)))
    return [tuple(map(int, order[start:end])) for start, end in runs]


def wilcoxon(a_D: Sequence[float], b_D: Sequence[float]) -> float:
    """Two-sided signed-rank p over datasets; exact to 50 of them, with ties or zeros to 13."""
    d_D = np.subtract(a_D, b_D)
    return float(scipy.stats.wilcoxon(d_D).pvalue) if d_D.any() else 1.0


class Components(NamedTuple):
    """Variances of one number. NaN: one seed cannot show it, and it is part of what is above it."""

    pretraining: float
    subset: float
    interaction: float  # of both: a subset that is good for one encoder; NaN where nested
    head: float  # and whatever else differs between two runs of one evaluation
    sampling: float  # of the mean over all seeds, by test images: apart, in none of the others
    cut: tuple[str, ...]  # estimated below 0, and set to 0


def components(
    values: Mapping[tuple[int, int, int], float | np.ndarray], crossed: bool = True
) -> Components:
    """How much of a number is luck: {(pretraining, subset, head) seed: value or v_R}, by ANOVA.

    Subset seed 1 draws the same images for every encoder, so subsets are crossed with pretraining
    seeds; crossed=False is for those drawn anew for each, nested in it. (Nested sums would take a
    share of the subsets from the pretraining's variance where they are the same.) Heads are nested
    in both; `sgd_probe` draws the same five for all subsets of an encoder, and what these share is
    in the pretraining's variance, a fifth of the head's at most. ValueError for an unbalanced
    design: run what is missing. Searle et al. 1992, ch. 4
    """
    tree: dict[int, dict[int, list]] = {}
    for p, s, h in sorted(values):
        tree.setdefault(p, {}).setdefault(s, []).append(np.atleast_1d(values[p, s, h]))
    sizes = {len(heads) for subsets in tree.values() for heads in subsets.values()}
    alike = {tuple(subsets) if crossed else len(subsets) for subsets in tree.values()}
    if len(sizes) != 1 or len(alike) != 1:
        raise ValueError(
            "every pretraining seed needs the same subset seeds, and each of those as many head "
            "seeds: run what is missing, or leave out what is over"
        )
    y_PSHR = np.array([list(subsets.values()) for subsets in tree.values()])
    y, (P, S, H) = y_PSHR[..., 0], y_PSHR.shape[:3]
    if not np.isfinite(y).all():
        raise ValueError("a value is not finite: no variance is better than a false one")
    mean_PS, mean_P, mean_S = y.mean(2), y.mean((1, 2)), y.mean((0, 2))
    inner_PS = mean_PS - mean_P[:, None] - (mean_S - y.mean() if crossed else 0)
    head = _square(y - mean_PS[..., None], 1, P * S * (H - 1))
    inner = _square(inner_PS, H, (P - 1 if crossed else P) * (S - 1))
    found = {
        "pretraining": _above(_square(mean_P - y.mean(), S * H, P - 1), S * H, inner, head),
        "subset": _above(_square(mean_S - y.mean(), P * H, S - 1), P * H, inner, head),
        "interaction": _above(inner, H, head),
        "head": head,
    }
    if not crossed:
        found |= {"subset": found["interaction"], "interaction": np.nan}
    means_R = y_PSHR.mean((0, 1, 2))[1:]
    means_R = means_R[~np.isnan(means_R)]
    return Components(
        **{name: max(v, 0.0) if v == v else v for name, v in found.items()},
        sampling=float(means_R.var(ddof=1)) if len(means_R) > 1 else np.nan,
        cut=tuple(name for name, v in found.items() if v < 0),
    )


class Needed(NamedTuple):
    """A share of the labels."""

    fraction: float | None  # None: not reached with all that were measured
    at_or_below: bool  # it is the smallest measured: fewer may do


def labels_needed(
    fractions_F: Sequence[float], curve_FR: np.ndarray, goal_R: np.ndarray, level: float = 0.95
) -> tuple[Needed, Needed, Needed]:
    """The smallest share of labels at which a curve reaches the goal; then its interval's ends.

    Between two shares the score is a line in log10 of the share. Reached is what stays reached: on
    a curve that falls below the goal again, only the last crossing counts, and with the end below
    it there is none. Every point and the goal are on the same resamples, so the interval is paired;
    either end may be "not reached". REMEDIS: Azizi et al. 2023, doi 10.1038/s41551-023-01049-7
    """
    x_F = np.log10(fractions_F)
    if np.any(np.diff(x_F) <= 0):
        raise ValueError(f"fractions {list(fractions_F)}: they must ascend")
    curve_FR, goal_R = np.asarray(curve_FR, float), np.asarray(goal_R, float)
    if np.isnan(curve_FR[:, 0]).any() or np.isnan(goal_R[0]):
        raise ValueError("a score is not a number: leave out the fraction that has none")
    known_R = ~np.isnan(curve_FR).any(0) & ~np.isnan(goal_R)
    d_FR = (curve_FR - goal_R)[:, known_R]
    stays_FR = np.logical_and.accumulate(d_FR[::-1] >= 0)[::-1]
    first_R, R = stays_FR.argmax(0), np.arange(d_FR.shape[1])
    before_R = np.maximum(first_R - 1, 0)
    low_R, high_R = d_FR[before_R, R], d_FR[first_R, R]
    part_R = np.where(first_R > 0, -low_R / np.where(high_R > low_R, high_R - low_R, 1), 0)
    f_R = 10 ** (x_F[before_R] + part_R * (x_F[first_R] - x_F[before_R]))
    f_R[first_R == 0] = fractions_F[0]
    f_R[~stays_FR[-1]] = np.inf
    seen = np.sort(f_R[1:] if len(f_R) > 1 else f_R)
    ends = (1 - level) / 2 * (len(seen) - 1)
    found = f_R[0], seen[int(np.floor(ends))], seen[len(seen) - 1 - int(np.floor(ends))]
    return tuple(
        Needed(None if np.isinf(f) else float(f), bool(f == fractions_F[0])) for f in found
    )


def _delong(p_MN: np.ndarray, t_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p_MN, ups = np.atleast_2d(p_MN), int(t_N.sum())
    if min(ups, downs := len(t_N) - ups) < 2:
        raise ValueError(f"DeLong's variance of {ups} positives and {downs} negatives: 2 at least")
    covariance_MM = np.cov(p_MN[:, t_N]) / ups + np.cov(p_MN[:, ~t_N]) / downs
    return p_MN[:, t_N].mean(1), np.atleast_2d(covariance_MM)


def _chunks(c_NR: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    step = max(1, CHUNK // len(c_NR))
    for start in range(0, c_NR.shape[1], step):
        at = slice(start, start + step)
        yield at, c_NR[:, at].astype(np.float64)  # which adds up whole numbers exactly to 2^53


def _sums(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_array:
    return csr_array((np.ones(len(row)), (row, column)), shape)


def _count(x_NK: np.ndarray, c_NR: np.ndarray) -> np.ndarray:
    return np.concatenate([x_NK.T.astype(float) @ c_Nr for _, c_Nr in _chunks(c_NR)], axis=1)


def _balanced(hit_NK: np.ndarray, t_NK: np.ndarray, many: bool, c_NR: np.ndarray) -> np.ndarray:
    """Balanced accuracy (R,) of labels that are given (N, K), or of how often each is, in 0..1."""
    recall_KR = _share(hit_NK, t_NK, c_NR)
    return _mean((recall_KR + _share(1 - hit_NK, ~t_NK, c_NR)) / 2 if many else recall_KR)


def _share(hit_NK: np.ndarray, of_NK: np.ndarray, c_NR: np.ndarray) -> np.ndarray:
    """Of the images that are `of`, how many are hit (K, R); NaN where there are none."""
    of_KR = _count(of_NK, c_NR)
    share_KR = np.full(of_KR.shape, np.nan)
    return np.divide(_count(hit_NK * of_NK, c_NR), of_KR, out=share_KR, where=of_KR > 0)


def _mean(a_KR: np.ndarray) -> np.ndarray:
    """Over the labels that have a number; NaN where none has."""
    there_R = (~np.isnan(a_KR)).sum(0)
    nothing_R = np.full(a_KR.shape[1], np.nan)
    return np.divide(np.nansum(a_KR, axis=0), there_R, out=nothing_R, where=there_R > 0)


def _placed(adjusted: np.ndarray, order: np.ndarray) -> np.ndarray:
    found = np.empty(len(order))
    found[order] = np.minimum(adjusted, 1)
    return found


def _square(deviation: np.ndarray, times: int, freedom: int) -> float:
    """A mean square; NaN where nothing is free to vary."""
    return float(times * np.sum(deviation**2) / freedom) if freedom else float("nan")


def _above(square: float, times: int, *below: float) -> float:
    """What a mean square has beyond the first of those below it that there is."""
    return (square - next((b for b in below if b == b), 0.0)) / times
