"""What scores are worth, for every MedMNIST task; what MedMNIST defines as MedMNIST does.

What a reader would get wrong: accuracy of a binary task is score > 0.5 (strictly) of the last
class, that of a multi-label task the mean over labels, and both need probabilities, not logits.
A class that has no image, or every image, in the split has no AUROC: it is left out of the mean.
medmnist/evaluator.py; balanced accuracy of a multi-label task as in MedMNIST-C's eval.py
Of detection: "FPR@95" is one number in ODIN and another in OpenOOD, and both are here by what they
are.

Calibration of classes that exclude each other is that of the class that is chosen; elsewhere of
each label's probability, and the mean over labels. A temperature and a threshold are found on
validation and used on test: found on test itself, they flatter.
Guo et al. 2017, https://arxiv.org/abs/1706.04599
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score, roc_auc_score

BINS = 15  # of equal width, for the calibration error
BOUND = 5  # of log temperature: at e^-5 a score of 0.6 is one of 1, at e^5 all are alike
SURE = 1e-6  # a vote of 0 or 1 has no logarithm; nothing is taken for surer than this

# N images (of the set, where M are from elsewhere), K classes, L levels of a score


def classification(scores_NK: np.ndarray, t_NK: np.ndarray, task: str) -> Iterator:
    """(name, value) of auroc, accuracy, balanced_accuracy and recall_k, all in [0, 1]."""
    s, t, classes = columns(scores_NK, t_NK, task)
    hit_NK = decided(s, task)
    auroc = {k: roc_auc_score(t[:, k], s[:, k]) for k in classes if _told_apart(t[:, k])}
    if auroc:
        yield "auroc", float(np.mean(list(auroc.values())))
    right_NK = hit_NK == t
    many = task.startswith("multi-label")
    yield "accuracy", float(right_NK.mean() if many else (hit_NK & t).any(1).mean())
    recall = {k: hit_NK[t[:, k], k].mean() for k in range(t.shape[1]) if t[:, k].any()}
    if many:  # mean over labels of the mean of sensitivity and specificity
        other = {k: right_NK[~t[:, k], k].mean() for k in recall if not t[:, k].all()}
        if other:
            both = [(recall[k] + other[k]) / 2 for k in other]
            yield "balanced_accuracy", float(np.mean(both))
    else:
        yield "balanced_accuracy", float(np.mean(list(recall.values())))
    for k, value in recall.items():
        yield f"recall_{k}", float(value)
    if len(classes) > 1:
        for k, value in auroc.items():
            yield f"auroc_{k}", float(value)


def decided(scores_NK: np.ndarray, task: str) -> np.ndarray:
    """Which labels (N, K) each image is given."""
    if not np.isfinite(scores_NK).all():
        raise ValueError("scores are not finite: no metric is better than a false one")
    if task == "binary-class":
        return np.stack([scores_NK[:, -1] <= 0.5, scores_NK[:, -1] > 0.5], axis=1)
    if task.startswith("multi-label"):
        return scores_NK > 0.5
    return np.arange(scores_NK.shape[1]) == scores_NK.argmax(1)[:, None]


def coded(scores_NK: np.ndarray, task: str) -> np.ndarray:
    """What `decided` says as a number (N,): the class, or of labels the k-th as bit k, up to 63.

    uint8 of up to 256 classes or 8 labels, uint16 of up to 16.
    """
    hit_NK = decided(scores_NK, task)
    labels = hit_NK.shape[1]
    if task.startswith("multi-label"):
        return (hit_NK @ (1 << np.arange(labels))).astype(np.min_scalar_type(2**labels - 1))
    return hit_NK.argmax(1).astype(np.min_scalar_type(labels - 1))


def decoded(code_N: np.ndarray, labels: int, task: str) -> np.ndarray:
    """What `decided` said (N, K), of what `coded` made of it."""
    code_N1, label_K = code_N[:, None].astype(np.int64), np.arange(labels)
    return (code_N1 >> label_K & 1) > 0 if task.startswith("multi-label") else code_N1 == label_K


def calibration(scores_NK: np.ndarray, t_NK: np.ndarray, task: str) -> Iterator:
    """(name, value) of ece, brier and log_loss; 0 is best.

    brier is the squared distance of all probabilities from the truth, summed over classes that
    exclude each other (so that of a binary task is twice the distance of one) and the mean over
    labels that do not; log_loss alike.
    """
    s, t, _ = columns(scores_NK, t_NK, task)
    if task.startswith("multi-label"):
        ece = np.mean([_ece(s[:, k], t[:, k]) for k in range(t.shape[1])])
        brier = ((s - t) ** 2).mean()
    else:
        ece = _ece(s.max(1), t[np.arange(len(t)), s.argmax(1)])
        brier = ((s - t) ** 2).sum(1).mean()
    yield "ece", float(ece)
    yield "brier", float(brier)
    yield "log_loss", _log_loss(_logits(s, task), t, task)


def temperature(scores_NK: np.ndarray, t_NK: np.ndarray, task: str) -> float | None:
    """By what to divide logits so that log-loss is least; above 1 where scores are too sure.

    None where there is no least: what is always right cannot be too sure.
    """
    s, t, _ = columns(scores_NK, t_NK, task)
    z_NK = _logits(s, task)

    def loss(log: float) -> float:
        return _log_loss(z_NK / np.exp(log), t, task)

    found = minimize_scalar(loss, bounds=(-BOUND, BOUND), method="bounded")
    least = found.fun < min(loss(-BOUND), loss(BOUND)) - 1e-9
    return float(np.exp(found.x)) if least else None


def cooled(scores_NK: np.ndarray, temperature: float, task: str) -> np.ndarray:
    """The probabilities (N, K) of the logits over `temperature`."""
    z_NK = _logits(np.asarray(scores_NK, np.float64), task) / temperature
    return np.exp(-np.logaddexp(0, -z_NK)) if task.startswith("multi-label") else _softmax(z_NK)


def thresholds(scores_NK: np.ndarray, t_NK: np.ndarray, task: str) -> dict[int, float]:
    """For each class the score above which sensitivity + specificity is highest (Youden's), half
    way to the next lower score; without the classes that all images have, or none."""
    s, t, classes = columns(scores_NK, t_NK, task)
    found = {}
    for k in classes:
        if _told_apart(t[:, k]):
            level_L, place_N = np.unique(s[:, k], return_inverse=True)
            has_L = np.bincount(place_N, t[:, k]) / t[:, k].sum()
            lacks_L = np.bincount(place_N, ~t[:, k]) / (~t[:, k]).sum()
            best = int(np.argmax(np.cumsum(lacks_L - has_L)))  # all up to it count as negative
            found[k] = float((level_L[best] + level_L[min(best + 1, len(level_L) - 1)]) / 2)
    return found


def at(
    thresholds: dict[int, float], scores_NK: np.ndarray, t_NK: np.ndarray, task: str
) -> Iterator:
    """(name, value) of sensitivity and specificity, the mean over classes, and of each class."""
    s, t, classes = columns(scores_NK, t_NK, task)
    usable = [k for k in classes if k in thresholds and _told_apart(t[:, k])]
    said = {k: s[:, k] > thresholds[k] for k in usable}
    for name, truth in (("sensitivity", t), ("specificity", ~t)):
        by_class = {k: ((said[k] == t[:, k]) & truth[:, k]).sum() / truth[:, k].sum() for k in said}
        if by_class:
            yield name, float(np.mean(list(by_class.values())))
        if len(classes) > 1:
            for k, value in by_class.items():
                yield f"{name}_{k}", float(value)


def detection(in_N: np.ndarray, out_M: np.ndarray) -> Iterator:
    """(name, value), in [0, 1], of scores that are to be larger in distribution than out of it.

    aupr_in has the images in distribution as positives, aupr_out the others; both depend on how
    many there are of each. fpr95_ood_accepted is the share from elsewhere that is accepted when
    95 % in distribution are (ODIN, Liang et al. 2018), fpr95_id_flagged the share in distribution
    that is flagged when 95 % from elsewhere are (OpenOOD 1.5). Equal scores are not separated.
    """
    s = np.concatenate([in_N, out_M]).astype(np.float64)
    if not np.isfinite(s).all():
        raise ValueError("scores are not finite: no metric is better than a false one")
    inside = np.arange(len(s)) < len(in_N)
    yield "auroc", float(roc_auc_score(inside, s))
    yield "aupr_in", float(average_precision_score(inside, s))
    yield "aupr_out", float(average_precision_score(~inside, -s))
    yield "fpr95_ood_accepted", _fpr95(s[inside], s[~inside])
    yield "fpr95_id_flagged", _fpr95(-s[~inside], -s[inside])


def columns(
    scores_NK: np.ndarray, t_NK: np.ndarray, task: str
) -> tuple[np.ndarray, np.ndarray, Sequence[int]]:
    """Scores, targets, and which columns are judged: of a binary task the last alone."""
    s, t = np.asarray(scores_NK, np.float64), np.asarray(t_NK) > 0.5
    return s, t, range(t.shape[1] - 1 if task == "binary-class" else 0, t.shape[1])


def _told_apart(t_N: np.ndarray) -> bool:
    return 0 < t_N.sum() < len(t_N)


def _ece(p_N: np.ndarray, true_N: np.ndarray) -> float:
    """Mean distance of a bin's probability from its frequency, by the images in it."""
    bin_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
    return np.abs(np.bincount(bin_N, p_N - true_N, BINS)).sum() / len(p_N)


def _logits(s_NK: np.ndarray, task: str) -> np.ndarray:
    """Logits, up to what softmax forgets."""
    s_NK = s_NK.clip(SURE, 1 - SURE)
    return np.log(s_NK) - np.log1p(-s_NK) * task.startswith("multi-label")


def _softmax(z_NK: np.ndarray) -> np.ndarray:
    e_NK = np.exp(z_NK - z_NK.max(1, keepdims=True))
    return e_NK / e_NK.sum(1, keepdims=True)


def _log_loss(z_NK: np.ndarray, t_NK: np.ndarray, task: str) -> float:
    if task.startswith("multi-label"):
        return float((np.logaddexp(0, z_NK) - z_NK * t_NK).mean())
    return float((logsumexp(z_NK, axis=1) - z_NK[t_NK]).mean())


def _fpr95(positive_N: np.ndarray, negative_M: np.ndarray) -> float:
    """Share of negatives that score no less than the highest threshold with 95 % of positives."""
    least = -(-95 * len(positive_N) // 100)  # rounded up
    threshold = np.sort(positive_N)[len(positive_N) - least]
    return float((negative_M >= threshold).mean())
