"""Robustness: how much of an answer is left when the test images are noisy, blurred or stained?

    head fitted on clean images -> test images under each corruption, five severities -> its error

The images are made here, at the size that the encoder sees (corruptions.py), and are the same for
every encoder. error is 1 - balanced accuracy. error:jpeg:3 is at severity 3, error:jpeg the mean of
the five, error the mean of all corruptions, clean_error without any; added_error is the difference,
error_ratio the quotient, absent where the clean error is below LEAST. auroc goes likewise.
MedMNIST-C divides by the errors of an AlexNet at 224 px. Ours never does: that is another size, and
where AlexNet was not harmed (contrast_up on PneumoniaMNIST) its relative error divides by less than
0, or almost by 0. Cost: five passes over the test split per corruption, so up to 75, for each cell
anew: their features are not kept. What was decided of each image is, for intervals of errors: 76 N
bytes (106 N of all families), twice that of nine labels or more; half on disk. AUROCs have none.
Di Salvo et al. 2024, https://arxiv.org/abs/2406.17536
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np
from torch import Tensor, nn

from medssl.corruptions import SEVERITIES, belonging, corrupt
from medssl.evals import Change, Subject, finetune, linear_probe
from medssl.evals._training import fit, probabilities
from medssl.metrics import classification, coded
from medssl.ranges import Corruptions, Whole

LEAST = 0.02  # clean error of which a multiple is told; below, a few images decide it


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix, or another default of the head, makes old results wrong
    corruptions: Corruptions = "own"  # the target's in MedMNIST-C; or families, "jpeg+motion_blur"
    head: Literal["linear_probe", "finetune"] = "linear_probe"  # or the encoder trained too, anew
    seed: Whole = 0  # of noise and stains; not with the encoder's, so that all see the same images


def evaluate(subject: Subject, config: Config) -> Iterator:
    """Metrics; and `coded` decisions of each image, "decided" (N,), "decided_jpeg" (N, 5), ..."""
    channels, t_NK = subject.images("test").x_NHWC.shape[3], subject.images("test").t_NK
    own = belonging(subject.target, channels)
    families = own if config.corruptions == "own" else config.corruptions.split("+")
    if channels == 1 and "saturate" in families:
        raise ValueError(f"saturate changes nothing on {subject.target}, all grey: leave it out")
    model, scores = subject.once(lambda: head(subject, config))

    def measured(change: Change | None = None) -> tuple[dict[str, float], np.ndarray]:
        s_NK = scores(subject.outputs(model, "test", change)).float().numpy()
        found = dict(classification(s_NK, t_NK, subject.task))
        if "balanced_accuracy" in found:
            found["error"] = 1 - found["balanced_accuracy"]
        return {k: found[k] for k in ("error", "auroc") if k in found}, coded(s_NK, subject.task)

    clean, clean_N = measured()
    yield "decided", clean_N
    yield from ((f"clean_{metric}", value) for metric, value in clean.items())
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for family in families:
        changes = [changing(family, severity, config.seed) for severity in SEVERITIES]
        at, codes = zip(*map(measured, changes), strict=True)
        yield f"decided_{family}", np.stack(codes, axis=1)
        for metric in clean:
            for severity, values in zip(SEVERITIES, at, strict=True):
                yield f"{metric}:{family}:{severity}", values[metric]
            means[metric][family] = mean(values[metric] for values in at)
    for family, error in means.get("error", {}).items():
        means["added_error"][family] = error - clean["error"]
        if clean["error"] >= LEAST:
            means["error_ratio"][family] = error / clean["error"]
    for metric, of in means.items():
        yield from ((f"{metric}:{family}", value) for family, value in of.items())
        yield metric, mean(of.values())


def head(subject: Subject, config: Config) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model of images, and what makes class scores of its outputs, fitted on clean images."""
    if config.head == "linear_probe":
        return subject.encoder(), linear_probe.drawn(subject, linear_probe.Config()).scores
    model, _ = fit(subject, finetune.Config())
    return model, lambda z_NK: probabilities(z_NK, subject.task.startswith("multi-label"))


def changing(family: str, severity: int, seed: int) -> Change:
    return lambda x_BCHW, index_B: corrupt(x_BCHW, family, severity, index_B, seed)
