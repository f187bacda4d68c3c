"""What turns gradients into updates. The schedule of the rate is the loop's, the same for all.

adamw   betas 0.9 and 0.95, as arXiv 2412.19124 has them; rates near 3e-4
sgd     momentum 0.9; rates near 0.05 (MoCo, SimSiam)
lars    SGD whose step in each layer is scaled to the layer's own size; rates near 0.3 and more
        (SimCLR and Barlow Twins at large batches). Norms and biases are left as SGD has them
"""

import torch

BETAS = (0.9, 0.95)
MOMENTUM = 0.9


def adamw(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)


def sgd(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, fused=True)


def lars(groups: list[dict]) -> torch.optim.Optimizer:
    from timm.optim import Lars

    for group in groups:  # Lars's own rule is to adapt what decays: at no decay, nothing
        group["always_adapt"] = not group["bare"]
    return Lars(groups, lr=0.0, momentum=MOMENTUM)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd, "lars": lars}


def build(name: str, groups: list[dict]) -> torch.optim.Optimizer:
    """The optimiser over groups that hold their own weight decay; the loop sets the rate.

    adamw and sgd skip an update where their `found_inf` is 1; lars takes it, and the loop then
    stops at the end of the epoch all the same.
    """
    return OPTIMIZERS[name](groups)
