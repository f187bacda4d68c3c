"""Supervised learning of an encoder and a line on it: fine-tuning's loop, and a supervised init's.

    labelled images -> crops -> encoder -> head -> loss -> AdamW; the best look at validation stays

A batch takes the next of an order of all images, and where that ends it goes on with the next: no
image is left out of an epoch for want of a full batch. With weight decay 0, AdamW is Adam. A fit
that is killed goes on from its checkpoint, to the same last bit.
"""

import copy
import io
import math
import random
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.device import autocast
from medssl.evals import Subject
from medssl.metrics import classification
from medssl.views import PLAIN, look

# N images, B in a batch, K classes


@torch.random.fork_rng()
def fit(subject: Subject, config) -> tuple[nn.Sequential, int]:
    """(encoder, head) after the update that is best on validation, and which update that was.

    `config` is `finetune.Config`.
    """
    images, many = subject.images("train"), subject.task.startswith("multi-label")
    t_VK = torch.from_numpy(subject.images("val").t_NK)
    if config.choose == "auroc" and not (t_VK.amin(0) < t_VK.amax(0)).any():
        raise ValueError(
            "choose='auroc' has nothing to choose by: all images of validation are of one class; "
            "choose='log_loss' does without"
        )
    seed = random.Random(f"{config.seed} {subject.seed}").getrandbits(48)
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
    batch = max(2, min(config.batch_size, len(images)))  # of one image BatchNorm has no spread
    steps = max(config.updates, round(config.epochs * len(images) / batch))
    best, best_step, kept, waiting = math.inf, 0, None, torch.empty(0, dtype=torch.long)
    checkpoint, start, began = subject.checkpoint, 0, time.monotonic()
    if checkpoint and (state := checkpoint.load()):
        so_far = restore(state, model, optimizer, order)
        start, best, best_step, kept, checkpoint.earlier_s, waiting = so_far

    for step in range(start, steps):
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(len(images), generator=order)])
        picked_B, waiting = waiting[:batch].to(device), waiting[batch:]
        domain_B = domain_N[picked_B]
        generator.manual_seed(seed + step)
        torch.manual_seed(seed + step)  # of dropout and drop path, which some of timm's have
        x_BCHW = look(view, x_NCHW[picked_B], mean_DC[domain_B], std_DC[domain_B], generator)
        learns = step >= config.frozen * steps
        model.train()
        encoder.train(learns).requires_grad_(learns)
        with autocast(device):
            z_BK = model(x_BCHW)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step / steps, config.schedule)
        optimizer.zero_grad()
        log_loss(z_BK.float(), t_NK[picked_B], positive_K).backward()
        optimizer.step()
        if due(step + 1, steps, config.looks):
            z_VK = subject.outputs(model, "val")
            found = log_loss(z_VK, t_VK, positive_K).item()
            if config.choose == "auroc":
                scored = classification(probabilities(z_VK, many).numpy(), t_VK, subject.task)
                found = -dict(scored)["auroc"]
            if found < best or kept is None:
                best, best_step, kept = found, step + 1, copy.deepcopy(model.state_dict())
        if checkpoint and step + 1 < steps:
            spent_s = checkpoint.earlier_s + time.monotonic() - began
            so_far = step + 1, best, best_step, kept, spent_s, waiting
            checkpoint.after(step + 1, steps, partial(snapshot, so_far, model, optimizer, order))

    model.load_state_dict(kept)
    if positive_K is not None:
        with torch.no_grad():
            model[1].bias -= positive_K.log()
    return model, best_step


def snapshot(so_far: tuple, model: nn.Module, optimizer, order: torch.Generator) -> bytes:
    """Everything that the next update depends on: crops and dropout have a seed for each."""
    file = io.BytesIO()
    learned = model.state_dict(), optimizer.state_dict(), order.get_state()
    torch.save({"so_far": so_far, "learned": learned}, file)
    return file.getvalue()


def restore(state: bytes, model: nn.Module, optimizer, order: torch.Generator) -> tuple:
    """The inverse of `snapshot`: fills the last three, returns `so_far`."""
    device = next(model.parameters()).device
    read = torch.load(io.BytesIO(state), map_location=device, weights_only=True)
    weights, moments, drawn = read["learned"]
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    order.set_state(drawn.cpu())
    *so_far, waiting = read["so_far"]
    return *so_far, waiting.cpu()


def due(step: int, steps: int, looks: int) -> bool:
    """Whether to look after `step` (from 1): `looks` times in all, evenly, and after the last."""
    return step * looks // steps > (step - 1) * looks // steps


def rate(progress: float, schedule: str) -> float:
    """The share of the learning rate at a share of the training."""
    if schedule == "steps":
        return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    return (1 + math.cos(math.pi * progress)) / 2


def log_loss(z_NK: Tensor, t_NK: Tensor, positive_K: Tensor | None) -> Tensor:
    """Mean over images; with weights of positives, of labels that do not exclude each other."""
    if positive_K is None:
        return F.cross_entropy(z_NK, t_NK)
    return F.binary_cross_entropy_with_logits(z_NK, t_NK, pos_weight=positive_K.to(z_NK.device))


def probabilities(z_NK: Tensor, many: bool) -> Tensor:
    return z_NK.sigmoid() if many else z_NK.softmax(1)
