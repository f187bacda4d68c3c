"""What stands without a prefix is test, what stands under `val_` is validation."""

import numpy as np
import torch

from medssl import metrics
from medssl.evals import Features, judge
from medssl.features import Judged


def test_test_and_validation_are_not_traded():
    t_NK = torch.eye(2).repeat(50, 1)
    held = {"test": Features(t_NK, t_NK), "val": Features(1 - t_NK[:60], t_NK[:60])}
    subject = Judged(lambda: None, lambda d, s, source: held[s], "a/1", "binary-class")
    found = dict(judge(subject, lambda x_ND: x_ND))
    assert (found["auroc"], found["val_auroc"]) == (1.0, 0.0)
    assert (found["accuracy"], found["val_accuracy"]) == (1.0, 0.0)
    assert np.array_equal(found["scores"], t_NK.numpy())


def test_a_validation_that_is_always_right_scales_nothing():
    t_NK = torch.eye(2).repeat(50, 1)
    held = dict.fromkeys(("test", "val"), Features((t_NK + 1) / 3, t_NK))
    subject = Judged(lambda: None, lambda d, s, source: held[s], "a/1", "binary-class")
    found = dict(judge(subject, lambda x_ND: x_ND))
    assert {"brier", "sensitivity"} < found.keys()
    assert not {"temperature", "brier_scaled", "ece_scaled"} & found.keys()


def test_temperature_and_threshold_are_chosen_on_validation_and_used_on_test():
    """Validation is as sure as it is right and wants a threshold of 0.8; test is neither."""
    rng = np.random.default_rng(0)
    p_N = torch.from_numpy(rng.random(2000).astype(np.float32))
    val_N = torch.from_numpy(rng.random(2000)) < p_N
    val = Features(torch.stack([1 - p_N, p_N], 1), torch.stack([~val_N, val_N], 1).float())
    test = Features(val.x_ND[:500] ** 3, torch.eye(2)[(p_N[:500] > 0.5).long()])
    held = {"test": test, "val": val}
    subject = Judged(lambda: None, lambda d, s, source: held[s], "a/1", "binary-class")
    found = dict(judge(subject, lambda x_ND: x_ND))
    assert abs(found["temperature"] - 1) < 0.1
    assert found["ece_scaled"] != found["ece"]
    (cut,) = metrics.thresholds(val.x_ND.numpy(), val.t_NK.numpy(), "binary-class").values()
    truth = test.t_NK[:, 1] > 0
    assert found["sensitivity"] == (test.x_ND[truth, 1] > cut).float().mean()
    assert found["specificity"] == (test.x_ND[~truth, 1] <= cut).float().mean()
