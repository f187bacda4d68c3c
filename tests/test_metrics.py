"""Equal to MedMNIST's own evaluator on its four task types; right where it says nothing."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from medmnist.evaluator import getACC, getAUC
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from medssl import metrics
from medssl.metrics import classification, detection

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


def test_labels_that_no_image_has_have_no_balanced_accuracy():
    found = dict(
        classification(np.full((4, 2), 0.2), np.zeros((4, 2)), "multi-label, binary-class")
    )
    assert found == {"accuracy": 1.0}


def test_what_is_always_right_has_no_temperature():
    """A lower one is always better: at the bound scores would be 0 or 1, and wrong ones ruinous."""
    scores_NK, t_NK = np.array([[0.6, 0.4], [0.3, 0.7], [0.4, 0.6]]), np.eye(2)[[0, 1, 1]]
    assert metrics.temperature(scores_NK, t_NK, "binary-class") is None
    assert (
        metrics.temperature(np.full((4, 2), 0.5), np.eye(2)[[0, 1, 1, 0]], "binary-class") is None
    )
    wrong = np.eye(2)[[1, 1, 1]]
    assert 0 < metrics.temperature(scores_NK, wrong, "binary-class") < 100


def test_scores_that_are_not_numbers_have_no_metric():
    scores_NK = np.full((4, 2), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        dict(classification(scores_NK, np.eye(2)[[0, 1, 0, 1]], "binary-class"))


def softmax(z_NK):
    e_NK = np.exp(z_NK - z_NK.max(1, keepdims=True))
    return e_NK / e_NK.sum(1, keepdims=True)


def truthful(task: str, n: int = 20000):
    """Scores that are the probabilities of the targets drawn from them."""
    rng = np.random.default_rng(0)
    z_NK = rng.normal(0, 1.5, (n, TASKS[task]))
    if task.startswith("multi-label"):
        p_NK = 1 / (1 + np.exp(-z_NK))
        return p_NK, rng.random(p_NK.shape) < p_NK
    p_NK = softmax(z_NK)
    drawn_N = (rng.random((n, 1)) > p_NK.cumsum(1)).sum(1).clip(max=p_NK.shape[1] - 1)
    return p_NK, np.eye(p_NK.shape[1], dtype=bool)[drawn_N]


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_that_tell_the_truth_are_calibrated_and_the_best(task):
    p_NK, t_NK = truthful(task)
    found = dict(metrics.calibration(p_NK, t_NK, task))
    assert found["ece"] < 0.012
    assert metrics.temperature(p_NK, t_NK, task) == pytest.approx(1, abs=0.05)
    for sharper in (0.7, 2.0):
        other_NK = metrics.cooled(p_NK, sharper, task)
        worse = dict(metrics.calibration(other_NK, t_NK, task))
        assert all(worse[name] > found[name] for name in found)
        assert metrics.temperature(other_NK, t_NK, task) == pytest.approx(1 / sharper, rel=0.05)
        again_NK = metrics.cooled(other_NK, 1 / sharper, task)
        np.testing.assert_allclose(again_NK, p_NK, atol=2 * metrics.SURE**0.5)  # nothing is surer


@pytest.mark.parametrize("task", TASKS)
def test_calibration_equals_scikit_learn_and_a_slow_loop(task):
    scores_NK, t_NK, _ = drawn(task, 0)
    t_NK = np.asarray(t_NK) > 0.5
    found = dict(metrics.calibration(scores_NK, t_NK, task))
    if task.startswith("multi-label"):
        clipped = scores_NK.clip(metrics.SURE, 1 - metrics.SURE)
        columns = list(zip(scores_NK.T, clipped.T, t_NK.T, strict=True))
        brier = np.mean([sklearn.metrics.brier_score_loss(t, s) for s, _, t in columns])
        log_loss = np.mean([sklearn.metrics.log_loss(t, s) for _, s, t in columns])
        ece = np.mean([slow_ece(s, t) for s, _, t in columns])
    else:
        brier = ((scores_NK - t_NK) ** 2).sum(1).mean()
        log_loss = sklearn.metrics.log_loss(t_NK.argmax(1), scores_NK, labels=range(t_NK.shape[1]))
        ece = slow_ece(scores_NK.max(1), scores_NK.argmax(1) == t_NK.argmax(1))
    if task == "binary-class":
        assert brier == pytest.approx(
            2 * sklearn.metrics.brier_score_loss(t_NK[:, 1], scores_NK[:, 1])
        )
    assert found == pytest.approx({"ece": ece, "brier": brier, "log_loss": log_loss}, abs=1e-6)


def slow_ece(p_N, true_N):
    total = 0.0
    for low in range(15):
        inside = [(p, t) for p, t in zip(p_N, true_N, strict=True) if min(int(p * 15), 14) == low]
        if inside:
            p, t = np.mean(inside, axis=0)
            total += len(inside) / len(p_N) * abs(p - t)
    return total


def test_votes_of_zero_and_one_have_a_finite_loss():
    scores_NK, t_NK = np.eye(2)[[0, 1, 1]], np.eye(2)[[0, 1, 0]]
    found = dict(metrics.calibration(scores_NK, t_NK, "binary-class"))
    assert found["log_loss"] == pytest.approx(-np.log(metrics.SURE) / 3, rel=1e-3)
    assert np.isfinite(metrics.temperature(scores_NK, t_NK, "binary-class"))


@pytest.mark.parametrize("task", TASKS)
def test_a_threshold_is_the_best_of_all(task):
    scores_NK, t_NK, _ = drawn(task, 0)
    t_NK = np.asarray(t_NK) > 0.5
    chosen = metrics.thresholds(scores_NK, t_NK, task)
    assert list(chosen) == ([1] if task == "binary-class" else list(range(TASKS[task])))
    for k, threshold in chosen.items():

        def youden(cut, k=k):
            said = scores_NK[:, k] > cut
            return said[t_NK[:, k]].mean() - said[~t_NK[:, k]].mean()

        assert youden(threshold) == pytest.approx(max(map(youden, scores_NK[:, k])))
    found = dict(metrics.at(chosen, scores_NK, t_NK, task))
    said = {k: scores_NK[:, k] > cut for k, cut in chosen.items()}
    sensitivity = {k: said[k][t_NK[:, k]].mean() for k in chosen}
    specificity = {k: (~said[k])[~t_NK[:, k]].mean() for k in chosen}
    assert found["sensitivity"] == pytest.approx(np.mean(list(sensitivity.values())))
    assert found["specificity"] == pytest.approx(np.mean(list(specificity.values())))
    if len(chosen) > 1:
        assert found["sensitivity_2"] == pytest.approx(sensitivity[2])
        assert found["specificity_2"] == pytest.approx(specificity[2])


def test_a_class_that_validation_lacks_has_no_threshold_and_is_left_out():
    scores_NK, t_NK = np.eye(3)[[0, 1, 0, 1]], np.eye(3)[[0, 1, 0, 1]] > 0.5
    chosen = metrics.thresholds(scores_NK, t_NK, "multi-class")
    assert list(chosen) == [0, 1]
    found = dict(metrics.at(chosen, scores_NK, t_NK, "multi-class"))
    assert (found["sensitivity"], found["specificity"]) == (1, 1)
    assert "sensitivity_2" not in found


def test_each_class_has_its_own_auroc():
    scores_NK, t_NK, _ = drawn("multi-class", 0)
    found = dict(classification(scores_NK, t_NK, "multi-class"))
    each = [found[f"auroc_{k}"] for k in range(7)]
    assert found["auroc"] == pytest.approx(np.mean(each))
    assert found["auroc_3"] == sklearn.metrics.roc_auc_score(t_NK[:, 3], scores_NK[:, 3])
    scores_NK, t_NK, _ = drawn("binary-class", 0)
    assert "auroc_1" not in dict(classification(scores_NK, t_NK, "binary-class"))


def drawn_apart(seed: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores in and out of distribution, more ties the fewer digits."""
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, 130).round(digits), rng.normal(0, 1, 70).round(digits)


@pytest.mark.parametrize("digits", [9, 1, 0])
@pytest.mark.parametrize("seed", range(3))
def test_detection_is_scikit_learns_curves_in_both_directions(seed, digits):
    in_N, out_M = drawn_apart(seed, digits)
    s, inside = np.concatenate([in_N, out_M]), np.arange(200) < 130
    found = dict(detection(in_N, out_M))
    assert found["auroc"] == pytest.approx(roc_auc_score(inside, s), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(inside, s), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(~inside, -s), abs=1e-12)
    for name, positive, score in (
        ("fpr95_ood_accepted", inside, s),
        ("fpr95_id_flagged", ~inside, -s),
    ):
        fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
        assert found[name] == fpr[tpr >= 0.95][0]


def test_the_two_fpr95_count_different_images():
    in_N, out_M = np.arange(100.0), np.array([-1.0] * 50 + [50.0] * 50)
    found = dict(detection(in_N, out_M))
    assert found["fpr95_ood_accepted"] == 0.5  # of those from elsewhere, above 5
    assert found["fpr95_id_flagged"] == 0.51  # of those in distribution, at 50 or below
    moved = dict(detection(in_N + 1000, out_M))
    assert (moved["fpr95_ood_accepted"], moved["fpr95_id_flagged"], moved["aupr_out"]) == (0, 0, 1)


def test_ninety_five_per_cent_are_the_fewest_that_are_as_many():
    for n in range(1, 200):
        kept = next(k for k in range(n + 1) if 100 * k >= 95 * n)
        found = dict(detection(np.arange(n), np.arange(n) + 0.5))
        assert found["fpr95_ood_accepted"] == kept / n


def test_equal_scores_detect_nothing():
    found = dict(detection(np.zeros(30), np.zeros(10)))
    assert (found["auroc"], found["aupr_in"], found["aupr_out"]) == (0.5, 0.75, 0.25)
    assert (found["fpr95_ood_accepted"], found["fpr95_id_flagged"]) == (1, 1)


def test_pytorch_ood_counts_the_same():
    theirs = pytest.importorskip("pytorch_ood.metrics.functional")
    for digits in (9, 0):
        in_N, out_M = drawn_apart(0, digits)
        found = dict(detection(in_N, out_M))
        s = torch.from_numpy(-np.concatenate([in_N, out_M]))  # theirs is larger out of distribution
        label = torch.where(torch.arange(200) < 130, 0, -1)
        assert float(theirs.fpr_at_tpr(s, label, 0.95)) == pytest.approx(found["fpr95_id_flagged"])
        assert float(theirs.auroc(s, label)) == pytest.approx(found["auroc"])


def test_scores_that_are_not_numbers_detect_nothing():
    with pytest.raises(ValueError, match="not finite"):
        dict(detection(np.array([1.0, np.inf]), np.zeros(2)))


@pytest.mark.parametrize(
    ("task", "labels", "dtype"),
    [
        ("multi-class", 11, np.uint8),
        ("multi-class", 256, np.uint8),
        ("ordinal-regression", 5, np.uint8),
        ("binary-class", 2, np.uint8),
        ("multi-label, binary-class", 8, np.uint8),
        ("multi-label, binary-class", 14, np.uint16),
        ("multi-label, binary-class", 33, np.uint64),
    ],
)
def test_what_is_decided_is_a_number_and_back(task, labels, dtype):
    scores_NK = np.random.default_rng(0).random((200, labels))
    code_N = metrics.coded(scores_NK, task)
    assert code_N.dtype == dtype
    assert code_N.shape == (200,)
    hit_NK = metrics.decoded(code_N, labels, task)
    assert hit_NK.dtype == bool
    assert np.array_equal(hit_NK, metrics.decided(scores_NK, task))


def test_a_code_is_the_class_or_a_bit_for_each_label():
    s_NK = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    assert metrics.coded(s_NK, "multi-class").tolist() == [2, 0]
    s_NK = np.array([[0.9, 0.2, 0.7], [0.1, 0.3, 0.1], [0.1, 0.8, 0.9]])
    assert metrics.coded(s_NK, "multi-label, binary-class").tolist() == [5, 0, 6]
