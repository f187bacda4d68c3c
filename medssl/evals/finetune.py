"""Fine-tuning: what is an encoder worth when all of it may learn from the labels there are?

    crops of the images -> copy of the encoder -> linear head -> the best step on validation -> test

The supervised baselines are this with method "none": from random weights, or from an init. Few
labels pass more often, so that every share has at least `updates` updates. The step is chosen by
validation log-loss, looked at twenty times; test is seen once. The rate falls by a half cosine.
Rare labels of a multi-label set weigh more in the loss, which lifts their scores; in the end the
head's bias is lowered by as much, so that scores are probabilities.
"""

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.device import autocast
from medssl.evals import Subject, judged
from medssl.ranges import Count, Positive, Share, Weight, Whole
from medssl.views import PLAIN, look

LOOKS = 20

# N images, B in a batch, K classes


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    epochs: Count = 50  # passes over the labelled images
    updates: Count = 300  # at least; what a handful of labels needs to be learned at all
    batch_size: Count = 64  # images
    learning_rate: Positive = 3e-4  # AdamW's, of encoder and head; random weights like 1e-3
    weight_decay: Weight = 0.05  # AdamW's, of all parameters
    frozen: Share = 0.0  # share of the updates in which the head learns alone: first the line
    smallest_crop: Share = 0.5  # of the image's area; 1 leaves images whole
    flip: Share = 0.5  # share mirrored left to right; 0 where the side of the body is the label
    seed: Whole = 0  # with the encoder's, of the head, the order of images and the crops


def evaluate(subject: Subject, config: Config) -> Iterator:
    model, best_step = fit(subject, config)
    yield "best_update", float(best_step)
    many = subject.task.startswith("multi-label")

    def of(split: str) -> tuple[Tensor, Tensor]:
        z_NK, t_NK = outputs(subject, model, split)
        return torch.sigmoid(z_NK) if many else z_NK.softmax(1), t_NK

    yield from judged(subject.task, of)


def fit(subject: Subject, config: Config) -> tuple[nn.Sequential, int]:
    """(encoder, head) after the update that is best on validation, and which update that was."""
    images, many = subject.images("train"), subject.task.startswith("multi-label")
    seed = random.Random(f"{config.seed} {subject.seed}").getrandbits(48)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = subject.encoder()
        model = nn.Sequential(encoder, nn.Linear(encoder.dim, len(images.classes)))
    device = next(encoder.parameters()).device
    model.to(device, memory_format=torch.channels_last)
    x_NCHW = torch.from_numpy(images.x_NHWC).permute(0, 3, 1, 2).to(device)
    t_NK = torch.from_numpy(images.t_NK).to(device)
    mean_DC, std_DC = (torch.from_numpy(a).to(device) for a in (images.mean_DC, images.std_DC))
    domain_N = torch.from_numpy(images.domain_N).to(device)
    view = replace(PLAIN, scale=(config.smallest_crop, 1.0), flip=config.flip)
    positive_K = ((1 - t_NK).sum(0) / t_NK.sum(0).clamp_min(1)).clamp_min(1) if many else None
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    order, generator = torch.Generator().manual_seed(seed), torch.Generator(device)
    batch = min(config.batch_size, len(images))
    steps = max(config.updates, config.epochs * (len(images) // batch))
    best, best_step, kept, waiting = math.inf, 0, None, torch.empty(0, dtype=torch.long)

    for step in range(steps):
        if len(waiting) < batch:
            waiting = torch.randperm(len(images), generator=order)
        picked_B, waiting = waiting[:batch].to(device), waiting[batch:]
        domain_B = domain_N[picked_B]
        generator.manual_seed(seed + step)
        x_BCHW = look(view, x_NCHW[picked_B], mean_DC[domain_B], std_DC[domain_B], generator)
        learns = step >= config.frozen * steps
        model.train()
        encoder.train(learns).requires_grad_(learns)
        with autocast(device):
            z_BK = model(x_BCHW)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        log_loss(z_BK.float(), t_NK[picked_B], positive_K).backward()
        optimizer.step()
        if step + 1 == steps or (step + 1) % max(1, steps // LOOKS) == 0:
            found = log_loss(*outputs(subject, model, "val"), positive_K).item()
            if found < best or kept is None:
                best, best_step, kept = found, step + 1, copy.deepcopy(model.state_dict())

    model.load_state_dict(kept)
    if positive_K is not None:
        with torch.no_grad():
            model[1].bias -= positive_K.log()
    return model, best_step


def outputs(subject: Subject, model: nn.Module, split: str) -> tuple[Tensor, Tensor]:
    """Logits and targets (N, K) of a split's whole images, on the host."""
    return subject.outputs(model, split), torch.from_numpy(subject.images(split).t_NK)


def log_loss(z_NK: Tensor, t_NK: Tensor, positive_K: Tensor | None) -> Tensor:
    """Mean over images; with weights of positives, of labels that do not exclude each other."""
    if positive_K is None:
        return F.cross_entropy(z_NK, t_NK)
    return F.binary_cross_entropy_with_logits(z_NK, t_NK, pos_weight=positive_K.to(z_NK.device))
