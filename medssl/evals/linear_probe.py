"""Linear probe: can a hyperplane read the classes off the frozen features?

    features, standardised -> logistic regression along a path of penalties -> the best on
    validation, refitted from zero on the same labels -> test

Multinomial where classes exclude each other, one regression per label where they do not. The
penalty is chosen by validation log-loss, which is smoother than AUROC on 78 images; test is seen
once. Mean and spread of each feature come from the whole training split, which needs no label: five
labelled images give no useful spread. The problem is convex: no learning rate, no epochs, no seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.evals import Subject, judge
from medssl.ranges import Count

# N images, D features, K classes


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    strongest: float = 1.0  # log10 of the first penalty on ||W||^2 / 2, beside the mean loss
    weakest: float = -6.0  # log10 of the last
    steps: Count = 15  # penalties on the path, evenly spaced in log10
    patience: Count = 4  # the path ends when validation has not improved for so many
    iterations: Count = 300  # of L-BFGS per penalty, at most; a few dozen are usual


def evaluate(subject: Subject, config: Config) -> Iterator:
    seen_ND = subject.features("unlabeled").x_ND.double()
    mean_D, spread_D = seen_ND.mean(0), seen_ND.std(0).clamp(min=1e-6)
    many = subject.task.startswith("multi-label")

    def scale(x_ND: Tensor) -> Tensor:
        return (x_ND.double() - mean_D) / spread_D

    (x_ND, t_NK), (val_ND, val_t_NK) = subject.features("train"), subject.features("val")
    x_ND, val_ND, t_NK, val_t_NK = scale(x_ND), scale(val_ND), t_NK.double(), val_t_NK.double()
    best_penalty, best, since, w = 0.0, float("inf"), 0, None
    for exponent in torch.linspace(config.strongest, config.weakest, config.steps).tolist():
        w = fit(x_ND, t_NK, 10**exponent, many, config.iterations, start=w)
        loss = log_loss(val_ND, val_t_NK, w, many).item()
        if loss < best:
            best_penalty, best, since = 10**exponent, loss, 0
        elif (since := since + 1) >= config.patience:
            break
    w = fit(x_ND, t_NK, best_penalty, many, config.iterations)
    yield "penalty", best_penalty
    squash = torch.sigmoid if many else lambda z_NK: z_NK.softmax(1)
    yield from judge(subject, lambda x_ND: squash(logits(scale(x_ND), w)))


def fit(
    x_ND: Tensor,
    t_NK: Tensor,
    penalty: float,
    many: bool,
    iterations: int,
    start: Tensor | None = None,
) -> Tensor:
    """Weights (D + 1, K), intercept last, that minimise log_loss + penalty / 2 * ||W||^2."""
    w = torch.zeros(x_ND.shape[1] + 1, t_NK.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    w = (w if start is None else start.clone()).requires_grad_()
    solver = torch.optim.LBFGS(
        [w],
        max_iter=iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = log_loss(x_ND, t_NK, w, many) + penalty / 2 * w[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return w.detach()


def logits(x_ND: Tensor, w: Tensor) -> Tensor:
    return torch.addmm(w[-1], x_ND, w[:-1])


def log_loss(x_ND: Tensor, t_NK: Tensor, w: Tensor, many: bool) -> Tensor:
    """Mean over images; where an image may have many labels, summed over labels."""
    if many:
        return F.binary_cross_entropy_with_logits(logits(x_ND, w), t_NK) * t_NK.shape[1]
    return F.cross_entropy(logits(x_ND, w), t_NK)
