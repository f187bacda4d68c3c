"""Is it learning, or collapsing? A look now and then, for a few percent of a short run's time.

    a slice of the training images, uncropped -> features -> nearest neighbours, spread, RankMe

Neighbours are asked of images held out of the bank, and both are training images: nothing here sees
validation or test. Their labels are read for the curve alone; they reach no gradient, and the rule
that may end a run early asks only what needs no label. RankMe is the number of directions that the
features use (Garrido et al. 2023, https://arxiv.org/abs/2210.02885), here centred, as the paper's
are not, and never more than there are images in the slice.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from medssl.datasets import Images
from medssl.evals import Features
from medssl.evals.knn import Config, vote
from medssl.features import extract
from medssl.metrics import classification

LOOKS = 20  # over a whole run, at most, the last epoch among them; a short run has one an epoch
SLICE = 768  # images, a third of them held out
COLLAPSED = 1.5  # directions; below it features lie on a line
POINT = 1e-3  # deviation of unit features; below it they are one point

# N images, D features


def due(epoch: int, epochs: int) -> bool:
    """Whether to look after `epoch` (from 1) of `epochs`."""
    return epoch == epochs or epoch % math.ceil(epochs / LOOKS) == 0


def look(encoder: nn.Module, images: Images, device: torch.device) -> dict[str, float]:
    """knn_auroc, feature_spread (0: one point) and rankme (from 1) of a slice, always the same."""
    picked = np.random.default_rng(0).permutation(len(images))[:SLICE]
    part = images.part(picked)
    # float32: the rounding of bfloat16 has directions of its own, and hides a collapse
    x_ND, t_NK = extract(encoder, part, device, exact=True), torch.from_numpy(part.t_NK)
    bank = Features(x_ND[: 2 * len(x_ND) // 3], t_NK[: 2 * len(x_ND) // 3])
    held, target = x_ND[len(bank.x_ND) :], t_NK[len(bank.x_ND) :]
    scores = dict(classification(vote(bank, held, Config()).numpy(), target.numpy(), images.task))
    found = {"knn_auroc": scores["auroc"]} if "auroc" in scores else {}  # one class alone has none
    spread = float(nn.functional.normalize(x_ND, dim=1).std(0).norm())
    return found | {"feature_spread": spread, "rankme": rankme(x_ND)}


def rankme(x_ND: Tensor) -> float:
    """exp of the entropy of the singular values of centred features: D at most, 1 on a line."""
    size_D = torch.linalg.svdvals(x_ND - x_ND.mean(0))
    share_D = size_D / size_D.sum().clamp_min(1e-12) + 1e-7
    return float((-share_D * share_D.log()).sum().exp())


def collapsed(curve: list[dict[str, float]], times: int = 1) -> bool:
    """Whether the last looks, so many in a row, found features on a line or all in one place."""
    seen = [entry for entry in curve if "rankme" in entry][-times:]
    flat = [look["rankme"] < COLLAPSED or look["feature_spread"] < POINT for look in seen]
    return len(flat) == times and all(flat)
