"""Equal to MedMNIST's own evaluator on its four task types; right where it says nothing."""

import numpy as np
import pytest
from medmnist.evaluator import getACC, getAUC

from medssl.metrics import classification

N = 400
TASKS = {
    "multi-class": 7,
    "ordinal-regression": 5,
    "binary-class": 2,
    "multi-label, binary-class": 14,
}


def drawn(task: str, seed: int):
    """Scores as probabilities with ties, targets as ours, and both as MedMNIST wants them."""
    rng = np.random.default_rng(seed)
    classes = TASKS[task]
    if task.startswith("multi-label"):
        t_NK = rng.random((N, classes)) < 0.2
        scores_NK = np.round(0.4 * t_NK + 0.6 * rng.random((N, classes)), 2)
        return scores_NK, t_NK, t_NK.astype(int)
    y_N = rng.permutation(np.arange(N) % classes)
    t_NK = np.eye(classes)[y_N]
    raw_NK = np.round(np.exp(t_NK + rng.normal(size=t_NK.shape)), 1)
    return raw_NK / raw_NK.sum(1, keepdims=True), t_NK, y_N[:, None]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(5))
def test_equals_medmnist(task, seed):
    scores_NK, t_NK, label_NL = drawn(task, seed)
    mine = dict(classification(scores_NK, t_NK, task))
    assert mine["auroc"] == pytest.approx(getAUC(label_NL, scores_NK, task), abs=1e-9)
    assert mine["accuracy"] == pytest.approx(getACC(label_NL, scores_NK, task), abs=1e-9)


def test_a_binary_score_of_one_half_is_the_first_class_as_in_medmnist():
    half = np.full((4, 2), 0.5)
    t_NK = np.eye(2)[[0, 0, 0, 1]]
    found = dict(classification(half, t_NK, "binary-class"))
    assert found["accuracy"] == getACC(np.array([[0], [0], [0], [1]]), half, "binary-class") == 0.75


def test_balanced_accuracy_is_the_mean_recall():
    scores_NK = np.eye(3)[[0, 0, 0, 0, 1, 2]]
    t_NK = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    found = dict(classification(scores_NK, t_NK, "multi-class"))
    assert [found[f"recall_{k}"] for k in range(3)] == [1.0, 0.5, 1.0]
    assert found["balanced_accuracy"] == pytest.approx(2.5 / 3)


def test_balanced_accuracy_of_labels_is_the_mean_of_sensitivity_and_specificity():
    t_NK = np.array([[1, 0], [1, 0], [0, 1], [0, 0]])
    scores_NK = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.1, 0.1]])
    found = dict(classification(scores_NK, t_NK, "multi-label, binary-class"))
    assert found["balanced_accuracy"] == pytest.approx(((0.5 + 1) / 2 + (1 + 2 / 3) / 2) / 2)


def test_a_class_that_is_not_in_the_split_is_left_out_not_zero():
    scores_NK = np.random.default_rng(0).random((20, 3))
    t_NK = np.eye(3)[np.arange(20) % 2]
    found = dict(classification(scores_NK, t_NK, "multi-class"))
    assert "recall_2" not in found
    assert 0 < found["auroc"] < 1


def test_scores_that_are_not_numbers_have_no_metric():
    scores_NK = np.full((4, 2), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        dict(classification(scores_NK, np.eye(2)[[0, 1, 0, 1]], "binary-class"))
