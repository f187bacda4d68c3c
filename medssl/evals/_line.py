"""The line itself: logistic regression on frozen features, for the probe and for what asks of it.

    features, standardised -> L-BFGS along a path of penalties -> the best on validation

Mean and spread of each feature come from the whole training split, which needs no label: five
labelled images give no useful spread. float64 throughout: the optimum is one, whatever the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.evals import Subject

# N images, D features, K classes


class Line(NamedTuple):
    mean_D: Tensor  # of the whole training split
    spread_D: Tensor
    w: Tensor  # (D + 1, K) on standardised features, intercept last
    many: bool  # whether an image may have many labels
    penalty: float  # that validation chose

    def logits(self, x_ND: Tensor) -> Tensor:
        return logits((x_ND.double() - self.mean_D) / self.spread_D, self.w)

    def scores(self, x_ND: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        z_NK = self.logits(x_ND)
        return z_NK.sigmoid() if self.many else z_NK.softmax(1)

    def raw(self) -> tuple[Tensor, Tensor]:
        """(D, K) and (K,) that make the same logits of features as they are."""
        w_DK = self.w[:-1] / self.spread_D[:, None]
        return w_DK, self.w[-1] - self.mean_D @ w_DK


def draw(
    subject: Subject, penalties: list[float], patience: int = 4, iterations: int = 300
) -> Line:
    """The line with the penalty, strongest first, that is best on validation; refitted from zero.

    The path ends when validation log-loss has not improved for `patience` penalties; `iterations`
    of L-BFGS each, at most.
    """
    seen_ND = subject.features("unlabeled").x_ND.double()
    mean_D, spread_D = seen_ND.mean(0), seen_ND.std(0).clamp(min=1e-6)
    many = subject.task.startswith("multi-label")

    def learned(split: str) -> tuple[Tensor, Tensor]:
        x_ND, t_NK = subject.features(split)
        return (x_ND.double() - mean_D) / spread_D, t_NK.double()

    (x_ND, t_NK), (val_ND, val_t_NK) = learned("train"), learned("val")
    chosen, best, since, w = penalties[0], float("inf"), 0, None
    for penalty in penalties:
        w = fit(x_ND, t_NK, penalty, many, iterations, start=w)
        loss = log_loss(val_ND, val_t_NK, w, many).item()
        if loss < best:
            chosen, best, since = penalty, loss, 0
        elif (since := since + 1) >= patience:
            break
    return Line(mean_D, spread_D, fit(x_ND, t_NK, chosen, many, iterations), many, chosen)


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
