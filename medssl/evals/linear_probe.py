"""Linear probe: can a hyperplane read the classes off the frozen features?

    features, standardised -> logistic regression along a path of penalties -> the best on
    validation, refitted from zero on the same labels -> test

Multinomial where classes exclude each other, one regression per label where they do not. The
penalty is chosen by validation log-loss, which is smoother than AUROC on 78 images; test is seen
once. The problem is convex: no learning rate, no epochs, no seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from medssl.evals import Subject, _line, judge
from medssl.ranges import Count


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    strongest: float = 1.0  # log10 of the first penalty on ||W||^2 / 2, beside the mean loss
    weakest: float = -6.0  # log10 of the last
    steps: Count = 15  # penalties on the path, evenly spaced in log10
    patience: Count = 4  # the path ends when validation has not improved for so many
    iterations: Count = 300  # of L-BFGS per penalty, at most; a few dozen are usual


def evaluate(subject: Subject, config: Config) -> Iterator:
    line = subject.once(lambda: drawn(subject, config))
    yield "penalty", line.penalty
    yield from judge(subject, line.scores)


def drawn(subject: Subject, config: Config) -> _line.Line:
    """The probe itself, for evaluations that ask something else of it."""
    path = torch.linspace(config.strongest, config.weakest, config.steps).tolist()
    penalties = [10**exponent for exponent in path]
    return _line.draw(subject, penalties, config.patience, config.iterations)
