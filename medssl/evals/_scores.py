"""How much like the training images is an image? Scores of its features, larger where more alike.

    features of training images -> a score, x_ND -> s_N; float64 throughout

Classes are numbers from 0; where an image may have many labels, each combination of them is one.
Every covariance has the reference's ridge of 1e-6: with fewer images than features (five labels at
1 % of BreastMNIST) it alone measures the directions in which no training image differs. Eigenvalues
are right to 1e-15 of the largest, so it can be trusted while no variance is above 1e5.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-6
AT_ONCE = 2**25  # cosines; sets memory, never the answer

# N images, M training images, B at a time, D features, R of them rest, C classes,
# K logits, J neighbours

Score = Callable[[Tensor], Tensor]


def gaussian(x_MD: Tensor, class_M: Tensor, n: int) -> Score:
    """-min_c (x - mean_c)' S^-1 (x - mean_c), with one S = scatter / n + 1e-6 I."""
    x_MD, size_C = x_MD.double(), class_M.bincount()
    mean_CD = x_MD.new_zeros(len(size_C), x_MD.shape[1]).index_add_(0, class_M, x_MD)
    mean_CD /= size_C[:, None]
    z_MD = x_MD - mean_CD[class_M]
    value_D, vector_DD = torch.linalg.eigh(z_MD.T @ z_MD / n)
    value_D = value_D * (value_D > 1e-13 * value_D[-1])  # what is below is rounding
    white_DD = vector_DD / (value_D + RIDGE).sqrt()
    centre_CD = mean_CD @ white_DD

    def score(x_ND: Tensor) -> Tensor:
        exact = "donot_use_mm_for_euclid_dist"
        distance_NC = torch.cdist(x_ND.double() @ white_DD, centre_CD, compute_mode=exact)
        return -distance_NC.amin(1).square()

    return score


def mahalanobis(x_MD: Tensor, class_M: Tensor) -> Score:
    """One covariance for all classes, scatter / (M - C), as in arXiv 2412.19124's code.

    Lee et al. 2018, https://arxiv.org/abs/1807.03888
    """
    return gaussian(x_MD, class_M, max(1, len(x_MD) - len(class_M.unique())))


def relative_mahalanobis(x_MD: Tensor, class_M: Tensor) -> Score:
    """The distance to the nearest class, less that to one Gaussian of the same images; scatter / M.

    Ren et al. 2021, https://arxiv.org/abs/2106.09022
    """
    near = gaussian(x_MD, class_M, len(x_MD))
    background = gaussian(x_MD, torch.zeros_like(class_M), len(x_MD))
    return lambda x_ND: near(x_ND) - background(x_ND)


def ssd(x_MD: Tensor) -> Score:
    """One Gaussian, no label: features of length one, standardised, units without spread left out.

    The ridge stands where the authors have a pseudo-inverse, to which a direction without training
    images is no distance at all. Sehwag et al. 2021, https://arxiv.org/abs/2103.12051
    """
    z_MD = _unit(x_MD.double())
    mean_D, spread_D = z_MD.mean(0), z_MD.std(0, correction=0)
    spread_D = spread_D.masked_fill(spread_D < 1e-8, torch.inf)

    def seen(x_ND: Tensor) -> Tensor:
        return (_unit(x_ND.double()) - mean_D) / spread_D

    score = gaussian(seen(x_MD), torch.zeros(len(x_MD), dtype=torch.long), len(x_MD))
    return lambda x_ND: score(seen(x_ND))


def knn(x_MD: Tensor, neighbours: int) -> Score:
    """Minus the distance to the J-th nearest training image, features of length one, no label.

    J is `neighbours`, and at most a hundredth of the training images: fifty of BreastMNIST's 546
    would be more than some classes have. Sun et al. 2022, https://arxiv.org/abs/2204.06507
    """
    bank_DM = _unit(x_MD.double()).T
    j = min(neighbours, max(1, len(x_MD) // 100))

    def score(x_ND: Tensor) -> Tensor:
        rows = x_ND.double().split(max(1, AT_ONCE // len(x_MD)))
        cosine_N = torch.cat([(_unit(x_BD) @ bank_DM).topk(j).values[:, -1] for x_BD in rows])
        return -(2 - 2 * cosine_N).clamp(min=0).sqrt()

    return score


def residual(x_MD: Tensor, w_DK: Tensor, b_K: Tensor, principal: float) -> Score:
    """Minus what is left of a feature outside of the principal space of the training images.

    Seen from where all logits of the head x W + b are 0. The space has the share `principal` of the
    directions in which training images differ, not of D: dead units would be in it.
    Wang et al. 2022, https://arxiv.org/abs/2203.10807
    """
    x_MD = x_MD.double()
    origin_D = -torch.linalg.pinv(w_DK.T, rtol=1e-10) @ b_K  # softmax's W has a null direction
    z_MD = x_MD - origin_D
    value_D, vector_DD = torch.linalg.eigh(z_MD.T @ z_MD / len(z_MD))
    rank = int((value_D > 1e-12 * value_D[-1]).sum())
    kept = max(1, min(rank - 1, round(principal * rank)))
    rest_DR = vector_DD[:, : len(value_D) - kept]
    return lambda x_ND: -((x_ND.double() - origin_D) @ rest_DR).norm(dim=1)


def vim(x_MD: Tensor, logits: Callable[[Tensor], Tensor], left: Score) -> Score:
    """The energy of the logits, less the residual, which is scaled to the largest logit's size.

    Training images that leave no residual make that of any other large, and still a number.
    Wang et al. 2022, https://arxiv.org/abs/2203.10807
    """
    least = 1e-12 + 1e-6 * x_MD.double().norm(dim=1).mean()
    alpha = logits(x_MD).amax(1).mean() / torch.maximum(-left(x_MD).mean(), least)
    return lambda x_ND: logits(x_ND).logsumexp(1) + alpha * left(x_ND)


def msp(z_NK: Tensor, many: bool) -> Tensor:
    """Log odds of the largest probability: its order, where itself would round to 1.

    Hendrycks and Gimpel 2017, https://arxiv.org/abs/1610.02136
    """
    if many:
        return z_NK.amax(1)
    top_NK = z_NK.sort(1, descending=True).values
    return top_NK[:, 0] - top_NK[:, 1:].logsumexp(1)


def max_logit(z_NK: Tensor, many: bool) -> Tensor:
    """Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132"""
    return z_NK.amax(1)


def energy(z_NK: Tensor, many: bool) -> Tensor:
    """log sum exp, T = 1; of labels that do not exclude each other, the sum of theirs.

    Liu et al. 2020, https://arxiv.org/abs/2010.03759; Wang et al. 2021, arXiv 2109.14162
    """
    return F.softplus(z_NK).sum(1) if many else z_NK.logsumexp(1)


def _unit(x_ND: Tensor) -> Tensor:
    return F.normalize(x_ND, dim=1)
