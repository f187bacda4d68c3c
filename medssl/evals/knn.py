"""k nearest neighbours: are images of one class already neighbours, before anything is trained?

The cheapest look at a frozen encoder, with no optimiser to blame. Neighbours vote with weight
exp(cosine / temperature). Weights sum to one, so a score is a probability and 0.5 a fair threshold.
Wu et al. 2018, https://arxiv.org/abs/1805.01978
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.evals import Features, Subject, judge
from medssl.ranges import Count, Positive

CHUNK = 512  # B; sets memory, never the answer

# M bank images, N query images, B queries at a time, J neighbours, D features, K classes


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    neighbours: Count = 20  # J; a smaller bank votes whole
    temperature: Positive = 0.07  # lower trusts the nearest more


def evaluate(subject: Subject, config: Config) -> Iterator:
    bank = subject.features("train")
    yield from judge(subject, lambda x_ND: vote(bank, x_ND, config))


def vote(bank: Features, x_ND: Tensor, config: Config) -> Tensor:
    """Class scores (N, K): the bank's targets, averaged over each query's nearest neighbours."""
    bank_MD = F.normalize(bank.x_ND, dim=1)
    scores = []
    for x_BD in F.normalize(x_ND, dim=1).split(CHUNK):
        cosine_BJ, near_BJ = (x_BD @ bank_MD.T).topk(min(config.neighbours, len(bank_MD)))
        weight_BJ = (cosine_BJ / config.temperature).softmax(dim=1)
        scores.append(torch.einsum("bj,bjk->bk", weight_BJ, bank.t_NK[near_BJ]))
    return torch.cat(scores)
