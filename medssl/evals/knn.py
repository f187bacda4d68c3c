"""k nearest neighbours: are images of one class already neighbours, before anything is trained?

The cheapest look at a frozen encoder, with no optimiser to blame. Neighbours vote with weight
exp(cosine / temperature). Weights sum to one, so a score is a probability and 0.5 a fair threshold.
Or each has one vote and is near by its Euclidean distance, features as they are: with 11 of them,
MedMNIST+'s benchmark. How many vote, and how steeply, validation may choose, by the Brier score,
which has no ties where accuracy has many.
Wu et al. 2018, https://arxiv.org/abs/1805.01978; Doerrich et al. 2025, arXiv 2404.15786
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.evals import Features, Subject, judge
from medssl.ranges import Count, Positive

CHUNK = 512  # B; sets memory, never the answer
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 50, 100, 150, 200)  # to choose from
TEMPERATURES = (0.02, 0.04, 0.07, 0.1, 0.2, 0.5, 1.0, 5.0)

# M bank images, N query images, B of them at a time, J neighbours, D features, K classes


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    neighbours: Count = 20  # J; a smaller bank votes whole
    temperature: Positive = 0.07  # lower trusts the nearest more; of no effect on euclidean
    distance: Literal["cosine", "euclidean"] = "cosine"  # votes by weight, or one each
    choose: bool = False  # neighbours and temperature on validation, whatever is set above


def evaluate(subject: Subject, config: Config) -> Iterator:
    bank = subject.features("train")
    if config.choose:
        config = chosen(bank, subject.features("val"), config)
        yield "neighbours", float(config.neighbours)
        yield "vote_temperature", config.temperature
    yield from judge(subject, lambda x_ND: vote(bank, x_ND, config))


def chosen(bank: Features, val: Features, config: Config) -> Config:
    """`config` with the neighbours and the temperature whose votes on validation are best."""
    grid = [
        replace(config, neighbours=count, temperature=temperature)
        for count in COUNTS
        for temperature in (TEMPERATURES if config.distance == "cosine" else [config.temperature])
    ]
    near = nearest(bank, val.x_ND, grid[-1])
    brier = [(counted(bank, near, each) - val.t_NK).square().sum(1).mean().item() for each in grid]
    return grid[brier.index(min(brier))]


def vote(bank: Features, x_ND: Tensor, config: Config) -> Tensor:
    """Class scores (N, K): the bank's targets, averaged over each query's nearest neighbours."""
    return counted(bank, nearest(bank, x_ND, config), config)


def nearest(bank: Features, x_ND: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Closeness and index in the bank (N, J) of each query's nearest, the nearest first."""
    cosine = config.distance == "cosine"
    bank_MD, x_ND = (
        F.normalize(a_ND, dim=1) if cosine else a_ND.double() for a_ND in (bank.x_ND, x_ND)
    )
    found = []
    for x_BD in x_ND.split(CHUNK):
        close_BM = x_BD @ bank_MD.T if cosine else -torch.cdist(x_BD, bank_MD)
        found.append(close_BM.topk(min(config.neighbours, len(bank_MD))))
    return torch.cat([close for close, _ in found]), torch.cat([near for _, near in found])


def counted(bank: Features, near: tuple[Tensor, Tensor], config: Config) -> Tensor:
    """Class scores (N, K) of the votes of `nearest`, or of the first of them."""
    cosine, scores = config.distance == "cosine", []
    for close_BJ, near_BJ in zip(*(a_NJ.split(CHUNK) for a_NJ in near), strict=True):
        close_BJ, near_BJ = (a_BJ[:, : config.neighbours] for a_BJ in (close_BJ, near_BJ))
        weight_BJ = (close_BJ / config.temperature).softmax(1) if cosine else None
        voted_BJK = bank.t_NK[near_BJ]
        scores.append(
            torch.einsum("bj,bjk->bk", weight_BJ, voted_BJK)
            if cosine
            else voted_BJK.sum(1) / near_BJ.shape[1]  # whole votes: ten of twenty are one half
        )
    return torch.cat(scores)
