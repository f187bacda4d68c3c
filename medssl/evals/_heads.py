"""Many linear heads at once: every setting, seed and share of the labels of a probe, in one pass.

    images in a seed's order -> logits of all its settings -> probability - target -> SGD
    after each epoch: all heads on validation; each keeps its best

The gradient of a linear head is written down, so a step is two products that serve all settings of
a seed. A head's first weights and its order of images are drawn from its own seed alone, so it is
the same head, up to rounding, alone or among others. Settings of one seed share both, so that they
are compared under the same dice; seeds share neither. Epochs are passes over a head's own images:
fewer images are fewer steps, and the last, smaller batch counts (47 images are one such batch).
SGD is torch's: weight decay is added to the gradient, the intercept's too, before momentum.
Two classes are one logit, the difference of the two: it learns at twice the sigmoid's gradient, and
what the two have in common is in no probability. float32 throughout.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.evals import Features

MOMENTUM = 0.9
FALLS = (0.6, 0.8)  # shares of the epochs after which the rate is a tenth of what it was

# T training sets, S seeds, G settings, H = T S G heads, L logits of a head, J = G L of a seed,
# N images, B in a batch, K classes, D features and a 1, whose weight is the intercept


class Setting(NamedTuple):
    learning_rate: float
    weight_decay: float


class Heads(NamedTuple):
    """Of one training set, each at the epoch that was best on validation, the first of equals."""

    w_SGLD: Tensor
    right_SG: Tensor  # validation targets that it met then; -1: its logits were never finite
    epoch_SG: Tensor  # from 1

    def chosen(self) -> int:
        """The setting whose heads met most in all; ValueError where each has one that diverged."""
        total_G = torch.where((self.right_SG >= 0).all(0), self.right_SG.sum(0), -1)
        if total_G.max() < 0:
            raise ValueError(
                "SGD diverged in every setting: use standardise=True, or a smaller learning_rate"
            )
        return int(total_G.argmax())  # the first of equals


def seeds(seed: int, encoder: int, heads: int) -> list[int]:
    """Of each head; `encoder` is the encoder's seed."""
    names = (f"{seed} {encoder} {head}" for head in range(heads))
    return [random.Random(name).getrandbits(48) for name in names]


def train(
    sets: Sequence[Features],
    val: Features,
    seeds: Sequence[int],
    settings: Sequence[Setting],
    many: bool = False,
    epochs: int = 100,
    batch: int = 256,
) -> list[Heads]:
    """Of each training set, a head for each seed and setting, on the device of the features.

    `many`: an image may have many labels; the loss is their mean too, as torch's is.
    """
    device, classes = val.x_ND.device, val.t_NK.shape[1]
    two = classes == 2 and not many
    alone = many or two  # every logit is a sigmoid's
    gain = 2 if two else 1 / classes if many else 1  # on a gradient that is a mean over images
    dice = [[torch.Generator().manual_seed(seed) for seed in seeds] for _ in sets]
    first_TSLD = torch.stack([torch.stack([_first(val, two, g) for g in of]) for of in dice])
    w_TSGLD = first_TSLD.to(device)[:, :, None].repeat(1, 1, len(settings), 1, 1)
    w_HLD, w_TSJD = w_TSGLD.flatten(0, 2), w_TSGLD.flatten(2, 3)  # the same memory
    v_TSJD = torch.zeros_like(w_TSJD)  # velocity
    L = w_HLD.shape[1]
    rate_J1, decay_J1 = torch.tensor(settings, device=device).repeat_interleave(L, 0).split(1, 1)
    data = [(_with_one(x_ND), t_NK[:, -L:].contiguous()) for x_ND, t_NK in sets]
    val_ND, val_NL = _with_one(val.x_ND), val.t_NK[:, -L:]
    most = min(batch, max(len(x_ND) for x_ND, _ in sets))
    room_XD = w_HLD.new_empty(len(seeds) * most, w_HLD.shape[2])  # fresh memory is slow
    right_H = torch.full((len(w_HLD),), -1, device=device)
    epoch_H, best_HLD = torch.zeros_like(right_H), w_HLD

    for epoch in range(epochs):
        fallen_J1 = rate_J1 * 0.1 ** sum(epoch >= share * epochs for share in FALLS)
        for (x_ND, t_NL), of, w_SJD, v_SJD in zip(data, dice, w_TSJD, v_TSJD, strict=True):
            order_SN = torch.stack([torch.randperm(len(x_ND), generator=g) for g in of])
            for picked_SB in order_SN.to(device).split(batch, 1):
                t_SLB, i = t_NL[picked_SB].mT, picked_SB.reshape(-1)
                x_SBD = torch.index_select(x_ND, 0, i, out=room_XD[: len(i)])
                x_SBD = x_SBD.view(*picked_SB.shape, -1)
                wrong_SJB = _wrong(torch.bmm(w_SJD, x_SBD.mT), t_SLB, alone)
                mean = gain / picked_SB.shape[1]
                torch.baddbmm(v_SJD, wrong_SJB, x_SBD, beta=MOMENTUM, alpha=mean, out=v_SJD)
                v_SJD.addcmul_(w_SJD, decay_J1)
                w_SJD.addcmul_(v_SJD, fallen_J1, value=-1)
        now_H = _right(w_HLD, val_ND, val_NL, alone)
        better_H = now_H > right_H
        right_H = torch.where(better_H, now_H, right_H)
        epoch_H = torch.where(better_H, epoch + 1, epoch_H)
        best_HLD = torch.where(better_H[:, None, None], w_HLD, best_HLD)
    kept = (a.unflatten(0, w_TSGLD.shape[:3]) for a in (best_HLD, right_H, epoch_H))
    return [Heads(*of) for of in zip(*kept, strict=True)]


def scores(w_LD: Tensor, x_ND: Tensor, many: bool) -> Tensor:
    """What one head makes of features: probabilities (N, K)."""
    z_NL = _with_one(x_ND) @ w_LD.mT
    if many:
        return z_NL.sigmoid()
    if len(w_LD) == 1:
        return torch.cat([-z_NL, z_NL], 1).sigmoid()
    return z_NL.softmax(1)


def _first(val: Features, two: bool, generator: torch.Generator) -> Tensor:
    """Weights (L, D) as torch's Linear begins: evenly within 1 / sqrt(features)."""
    (_, size), (_, classes) = val.x_ND.shape, val.t_NK.shape
    w_KD = (2 * torch.rand(classes, size + 1, generator=generator) - 1) / size**0.5
    return w_KD[1:] - w_KD[:1] if two else w_KD


def _with_one(x_ND: Tensor) -> Tensor:
    return F.pad(x_ND, (0, 1), value=1.0)


def _wrong(z_SJB: Tensor, t_SLB: Tensor, alone: bool) -> Tensor:
    """The gradient of the loss by the logits, times images and, of many labels, labels."""
    S, L, B = t_SLB.shape
    z_SGLB = z_SJB.view(S, -1, L, B)
    p_SGLB = z_SGLB.sigmoid_() if alone else z_SGLB.softmax(2)
    return p_SGLB.sub_(t_SLB[:, None]).view_as(z_SJB)


def _right(w_HLD: Tensor, x_ND: Tensor, t_NL: Tensor, alone: bool) -> Tensor:
    """How many targets each head meets, as metrics.py counts; -1 where a logit is not finite."""
    z_HLN = (w_HLD.flatten(0, 1) @ x_ND.mT).view(*w_HLD.shape[:2], -1)
    if alone:
        right_H = ((z_HLN > 0) == (t_NL.mT > 0.5)).sum((1, 2))
    else:
        right_H = (z_HLN.argmax(1) == t_NL.argmax(1)).sum(1)
    return torch.where(z_HLN.sum((1, 2)).isfinite(), right_H, -1)
