"""The probe's optimum is scikit-learn's, and its penalty is chosen on validation alone."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from medssl.evals import Features, _line, linear_probe
from medssl.features import Judged


def problem(n=300, d=20, k=4):
    g = torch.Generator().manual_seed(0)
    x_ND = torch.randn(n, d, generator=g, dtype=torch.float64)
    y_N = (x_ND @ torch.randn(d, k, generator=g, dtype=torch.float64)).argmax(1)
    flip = torch.rand(n, generator=g) < 0.2
    return x_ND, torch.where(flip, torch.randint(k, (n,), generator=g), y_N)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_equals_scikit_learn_on_many_classes(penalty):
    x_ND, y_N = problem()
    w = _line.fit(x_ND, F.one_hot(y_N).double(), penalty, many=False, iterations=1000)
    theirs = LogisticRegression(C=1 / (penalty * len(x_ND)), max_iter=10000, tol=1e-10)
    theirs.fit(x_ND.numpy(), y_N.numpy())
    mine = _line.logits(x_ND, w).softmax(1).numpy()
    np.testing.assert_allclose(mine, theirs.predict_proba(x_ND.numpy()), atol=2e-4)


def test_equals_scikit_learn_on_many_labels():
    x_ND, y_N = problem()
    t_NK = torch.stack([y_N == 0, y_N >= 2], 1).double()
    w = _line.fit(x_ND, t_NK, 1e-2, many=True, iterations=1000)
    for k in range(2):
        theirs = LogisticRegression(C=1 / (1e-2 * len(x_ND)), max_iter=10000, tol=1e-10)
        theirs.fit(x_ND.numpy(), t_NK[:, k].numpy())
        mine = _line.logits(x_ND, w)[:, k].sigmoid().numpy()
        np.testing.assert_allclose(mine, theirs.predict_proba(x_ND.numpy())[:, 1], atol=2e-4)


def test_the_penalty_is_strong_where_validation_says_that_nothing_can_be_learned():
    x_ND, y_N = problem()
    noise = torch.randint(4, (300,), generator=torch.Generator().manual_seed(1))

    def chosen(y_val):
        held = {
            "train": Features(x_ND.float(), F.one_hot(y_N).float()),
            "val": Features(x_ND.float(), F.one_hot(y_val).float()),
            "test": Features(x_ND.float(), F.one_hot(y_N).float()),
        }
        subject = Judged(lambda: None, lambda d, s, source: held[s], "a/1", "multi-class")
        return dict(linear_probe.evaluate(subject, linear_probe.Config()))["penalty"]

    assert chosen(noise) > 10 * chosen(y_N)


def test_the_scale_of_a_feature_does_not_matter():
    x_ND, y_N = problem()
    scale_D = torch.logspace(-3, 3, x_ND.shape[1], dtype=torch.float64)

    def scores(x):
        held = dict.fromkeys(("train", "val", "test"), Features(x, F.one_hot(y_N).float()))
        subject = Judged(lambda: None, lambda d, s, source: held[s], "a/1", "multi-class")
        return dict(linear_probe.evaluate(subject, linear_probe.Config()))["scores"]

    np.testing.assert_allclose(scores(x_ND), scores(x_ND * scale_D), atol=1e-3)
