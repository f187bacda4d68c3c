"""What stands without a prefix is test, what stands under `val_` is validation."""

import numpy as np
import torch

from medssl.evals import Features, judge
from medssl.features import Judged


def test_test_and_validation_are_not_traded():
    t_NK = torch.eye(2).repeat(50, 1)
    held = {"test": Features(t_NK, t_NK), "val": Features(1 - t_NK[:60], t_NK[:60])}
    subject = Judged(lambda: None, lambda d, s: held[s], "a/1", "binary-class")
    found = dict(judge(subject, lambda x_ND: x_ND))
    assert (found["auroc"], found["val_auroc"]) == (1.0, 0.0)
    assert (found["accuracy"], found["val_accuracy"]) == (1.0, 0.0)
    assert np.array_equal(found["scores"], t_NK.numpy())
