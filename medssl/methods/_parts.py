"""Parts that several methods are built from."""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*dims: int) -> nn.Sequential:
    """mlp(512, 4096, 512): Linear-ReLU between every pair, bare Linear at the end."""
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(dims[:-1]):
        layers += [nn.Linear(d_in, d_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))


def bn_mlp(*dims: int, bias: bool = True) -> nn.Sequential:
    """bn_mlp(512, 4096, 256): Linear-BN-ReLU between every pair, bare Linear at the end."""
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(dims[:-1]):
        layers += [nn.Linear(d_in, d_out, bias=bias), nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1], bias=bias))


def is_vit(encoder: nn.Module) -> bool:
    """Heads differ between the two families where the papers' do."""
    return hasattr(encoder, "patch_embed")


def in_float32(loss: Callable) -> Callable:
    """The same loss, computed in float32 whatever the autocast type around it."""

    @wraps(loss)
    def exact(*tensors, **options):
        device = tensors[0].device.type
        full = [t.float() if _half(t) else t for t in tensors]
        with torch.autocast(device, enabled=False):
            return loss(*full, **options)

    return exact


def _half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def together(module: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """What `module` makes of every view (V, B, D): of those of one size in one pass, as the codes
    with multi-crop do, so that they share their batch statistics."""
    groups = [g for g in (views[:2], views[2:]) if g]
    return torch.cat([module(torch.cat(tuple(g))) for g in groups]).unflatten(0, (len(views), -1))


@in_float32
def cosine(a_NP: Tensor, b_MP: Tensor) -> Tensor:
    """Cosine of the angle between every two rows (N, M)."""
    return unit(a_NP) @ unit(b_MP).T


def unit(z_NP: Tensor) -> Tensor:
    """Rows of length 1, float32."""
    return F.normalize(z_NP.float(), dim=1)


@in_float32
def swapped(target_GBK: Tensor, score_VBK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each view's scores with every *other* view's target, () mean over pairs.

    The first G of the V views have targets, in the same order.
    """
    log_VBK = (score_VBK / temperature).log_softmax(2)
    each_GV = -torch.einsum("gbk,vbk->gv", target_GBK, log_VBK) / score_VBK.shape[1]
    return (each_GV.sum() - each_GV.diagonal().sum()) / (each_GV.numel() - len(each_GV))


def gated(x: Tensor, open: Tensor) -> Tensor:
    """`x`, whose gradient is multiplied by `open`: 0 lets it rest without a branch."""
    return x.detach() + open * (x - x.detach())


@torch.no_grad()
def spread(z_NP: Tensor) -> Tensor:
    """1 when directions are uniform on the sphere, 0 when all images share one (collapse)."""
    return F.normalize(z_NP.float(), dim=1).std(0).mean() * z_NP.shape[1] ** 0.5
