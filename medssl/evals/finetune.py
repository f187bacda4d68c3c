"""Fine-tuning: what is an encoder worth when all of it may learn from the labels there are?

    crops of the images -> copy of the encoder -> linear head -> the best step on validation -> test

The supervised baselines are this with method "none": from random weights, or from an init. Few
labels pass more often, so that every share has at least `updates` updates. The step is chosen on
validation; test is seen once. Rare labels of a multi-label set weigh more in the loss, which lifts
their scores; in the end the head's bias is lowered by as much, so that scores are probabilities.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medssl.evals import Subject, judged
from medssl.evals._training import fit, probabilities
from medssl.ranges import Count, Positive, Several, Share, Weight, Whole

# N images, K classes


@dataclass(frozen=True)
class Config:
    version: int = 3  # raise it when a fix makes old results wrong; they are then run again
    epochs: Count = 50  # passes over the labelled images
    updates: Count = 300  # at least; what a handful of labels needs to be learned at all
    batch_size: Several = 64  # images
    learning_rate: Positive = 3e-4  # AdamW's, of encoder and head; random weights like 1e-3
    weight_decay: Weight = 0.05  # AdamW's, of all parameters; with 0 it is Adam
    schedule: Literal["cosine", "steps"] = "cosine"  # to 0; or to a tenth at 1/2, again at 3/4
    frozen: Share = 0.0  # share of the updates in which the head learns alone: first the line
    smallest_crop: Share = 0.5  # of the image's area; 1 leaves images whole
    flip: Share = 0.5  # share mirrored left to right; 0 where the side of the body is the label
    looks: Count = 20  # at validation, evenly spaced
    choose: Literal["log_loss", "auroc"] = "log_loss"  # of validation, the best look of
    seed: Whole = 0  # with the encoder's, of the head, the order of images and the crops


def evaluate(subject: Subject, config: Config) -> Iterator:
    model, best_step = subject.once(lambda: fit(subject, config))
    yield "best_update", float(best_step)
    many = subject.task.startswith("multi-label")

    def of(split: str) -> tuple[Tensor, Tensor]:
        z_NK, t_NK = subject.outputs(model, split), subject.images(split).t_NK
        return probabilities(z_NK, many), torch.from_numpy(t_NK)

    yield from judged(subject.task, of)
