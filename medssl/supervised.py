"""An encoder that learned from labels, for others to go on from: init "supervised:DATASET".

    init -> fine-tuned on all labels of DATASET -> the encoder without its head

As the chest X-ray studies pretrain. It is an encoder of the store like any other, made once, before
all that start from it; labels come in here and in `evals/`, never in `methods/`. It has seen all
labels of DATASET: judged on DATASET itself, its 1% of the labels is not 1%. So the rows of all that
start from it, or go on from one that did, say in `notes` which labels those were.
"""

import time
from pathlib import Path

import torch

from medssl import datasets
from medssl._work import Checkpoint
from medssl.datasets import Images
from medssl.evals import _training, finetune
from medssl.features import Judged
from medssl.pretrain import Pretrained, initial
from medssl.spec import EncoderSpec


def train(
    spec: EncoderSpec,
    root: Path | None,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Pretrained:
    """The encoder of a spec whose method is "supervised"; `root` is the folder of image files."""
    result, started = initial(spec), time.perf_counter()

    def images(dataset: str, split: str) -> Images:
        return datasets.load(dataset, split, spec.image_size, root)

    task = images(spec.dataset, "train").task
    given = {"images": images, "device": device, "checkpoint": checkpoint}
    subject = Judged(lambda: result.encoder, None, spec.dataset, task, **given)
    model, best_update = _training.fit(subject, finetune.Config(**dict(spec.recipe)))
    earlier_s = checkpoint.earlier_s if checkpoint else 0
    result.encoder, result.seconds = model[0], earlier_s + time.perf_counter() - started
    result.notes.append(f"supervised on {spec.dataset}: update {best_update} was best")
    return result
