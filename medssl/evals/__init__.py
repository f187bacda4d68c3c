"""The contract of an evaluation: one file, one `Config`, one `evaluate`.

    evaluate(subject, config) -> ("auroc", 0.93), ("val_auroc", 0.95), ..., ("scores", (N, K) array)

A float is a metric, computed once on test; `val_` marks those on validation, which is all that a
choice may look at. An array has a row for each test image and is kept beside the metrics, so that
intervals and paired tests need neither the encoder nor a GPU.

    together(subjects, config) -> what `evaluate` says of each

A file that has it is asked once for all cells that differ in their labelled images alone; each
subject's answer must be the one that it would have had by itself.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from medssl import metrics
from medssl._work import Checkpoint
from medssl.datasets import Images
from medssl.metrics import calibration, classification

Change = Callable[[Tensor, Tensor], Tensor]  # x_BCHW in 0..1, index_B in the split -> x_BCHW


class Features(NamedTuple):
    x_ND: Tensor  # float32, frozen encoder outputs
    t_NK: Tensor  # float32, one-hot or multi-hot targets


class Subject(Protocol):
    """A pretrained encoder and its data. Features are extracted once, for every evaluation."""

    seed: int  # the encoder's, for what an evaluation draws: seeds are to differ in all of it
    source: str  # the dataset whose labels are learned; mostly the target
    target: str  # the dataset that it is judged on: by "test", where "train" and "val" are source's
    device: torch.device  # the trial's; features are on the host
    checkpoint: Checkpoint | None  # where a long fit leaves its state, to go on when it was killed
    task: str  # MedMNIST's: "multi-class", "binary-class", "multi-label, binary-class", ...

    def features(self, split: str, dataset: str | None = None) -> Features:
        """Frozen features, or those of another dataset's split; all normalised as the source is.

        "train" is cut to the cell's label fraction; "unlabeled" is the whole training split, its
        targets withheld (NaN); "val" and "test" are whole.
        """
        ...

    def images(self, split: str) -> Images:
        """The images themselves; "train" is cut to the cell's label fraction."""
        ...

    def once(self, make: Callable[[], object]) -> object:
        """What `make` gives, made once for cells that differ in their target alone."""
        ...

    def encoder(self) -> nn.Module:
        """A fresh copy on the trial's device, free to be fine-tuned."""
        ...

    def outputs(self, model: nn.Module, split: str, change: Change | None = None) -> Tensor:
        """What `model`, x_BCHW -> (B, K), makes of a split's whole images (N, K), on the host.

        `change` is done to pixels, before the normalisation; nothing is stored.
        """
        ...


def judge(subject: Subject, predict: Callable[[Tensor], Tensor]) -> Iterator:
    """The metrics of `predict`, x_ND -> class scores (N, K), on test and on validation."""

    def of(split: str) -> tuple[Tensor, Tensor]:
        x_ND, t_NK = subject.features(split)
        return predict(x_ND), t_NK

    yield from judged(subject.task, of)


def judged(task: str, of: Callable[[str], tuple[Tensor, Tensor]]) -> Iterator:
    """The metrics of `of`, split -> class scores and targets (N, K), on test and on validation.

    On test also how far its probabilities can be trusted, as they are and at the temperature that
    suits validation best (`_scaled`; absent where none does), and what it finds at the threshold of
    validation.
    """
    (scores_NK, t_NK), (val_NK, val_t_NK) = (
        [a.float().cpu().numpy() for a in of(split)] for split in ("test", "val")
    )
    yield "scores", scores_NK
    for prefix, found in (("", (scores_NK, t_NK)), ("val_", (val_NK, val_t_NK))):
        for name, value in (*classification(*found, task), *calibration(*found, task)):
            yield prefix + name, value
    if warmth := metrics.temperature(val_NK, val_t_NK, task):
        yield "temperature", warmth
        for name, value in calibration(metrics.cooled(scores_NK, warmth, task), t_NK, task):
            yield f"{name}_scaled", value
    yield from metrics.at(metrics.thresholds(val_NK, val_t_NK, task), scores_NK, t_NK, task)
