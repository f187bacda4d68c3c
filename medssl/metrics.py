"""Scores for every MedMNIST task, defined as MedMNIST defines them, so numbers compare.

What a reader would get wrong: accuracy of a binary task is score > 0.5 (strictly) of the last
class, that of a multi-label task the mean over labels, and both need probabilities, not logits.
A class that has no image, or every image, in the split has no AUROC: it is left out of the mean.
medmnist/evaluator.py; balanced accuracy of a multi-label task as in MedMNIST-C's eval.py
"""

from collections.abc import Iterator

import numpy as np
from sklearn.metrics import roc_auc_score

# N images, K classes


def classification(scores_NK: np.ndarray, t_NK: np.ndarray, task: str) -> Iterator:
    """(name, value) of auroc, accuracy, balanced_accuracy and recall_k, all in [0, 1]."""
    s, t = np.asarray(scores_NK, np.float64), np.asarray(t_NK) > 0.5
    if not np.isfinite(s).all():
        raise ValueError("scores are not finite: no metric is better than a false one")
    if task == "binary-class":
        classes = [t.shape[1] - 1]
        hit_NK = np.stack([s[:, -1] <= 0.5, s[:, -1] > 0.5], axis=1)
    elif task.startswith("multi-label"):
        classes = range(t.shape[1])
        hit_NK = s > 0.5
    else:
        classes = range(t.shape[1])
        hit_NK = np.arange(t.shape[1]) == s.argmax(1)[:, None]
    auroc = [roc_auc_score(t[:, k], s[:, k]) for k in classes if 0 < t[:, k].sum() < len(t)]
    if auroc:
        yield "auroc", float(np.mean(auroc))
    right_NK = hit_NK == t
    many = task.startswith("multi-label")
    yield "accuracy", float(right_NK.mean() if many else (hit_NK & t).any(1).mean())
    recall = {k: hit_NK[t[:, k], k].mean() for k in range(t.shape[1]) if t[:, k].any()}
    if many:  # mean over labels of the mean of sensitivity and specificity
        other = {k: right_NK[~t[:, k], k].mean() for k in recall if not t[:, k].all()}
        yield "balanced_accuracy", float(np.mean([(recall[k] + other[k]) / 2 for k in other]))
    else:
        yield "balanced_accuracy", float(np.mean(list(recall.values())))
    for k, value in recall.items():
        yield f"recall_{k}", float(value)
