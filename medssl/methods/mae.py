"""MAE: hide three quarters of the patches and paint them from the rest.

    x -> patches, a quarter kept -> encoder -> with mask tokens in the gaps -> decoder -> pixels

No second view, no negatives, no teacher, hardly any augmentation: the mask is the task. Only a ViT
can leave patches out, and the encoder computes the kept ones alone, which is what makes it cheap.
The target is each patch's pixels with its own mean and deviation removed. Features of MAE are less
linear than contrastive ones: judge it by fine-tuning too. It needs small patches (16 patches are
few to guess from). Positions are learned, of encoder and decoder; the paper's are fixed sines.
He et al. 2021, https://arxiv.org/abs/2111.06377
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import in_float32, spread
from medssl.ranges import Count, Share

# B images, L patches of E pixels x channels, of which J are kept, D encoder features, Q decoder


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    masked: Share = 0.75  # share of the patches that is hidden; less makes it too easy
    decoder_dim: Count = 512  # Q
    decoder_depth: Count = 8  # blocks; a deep decoder frees the encoder from thinking of pixels
    decoder_heads: Count = 16  # of attention in each block


class Method(SSLMethod):
    views = "masked"
    preset = "mae"
    cost = 0.25
    symmetric = False
    forwards = False
    backbones = ("vit",)

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        q = config.decoder_dim
        self.patch = encoder.patch_embed.patch_size[0]  # pixels
        count = encoder.patch_embed.num_patches
        self.kept = max(1, min(round(count * (1 - config.masked)), count - 1))
        self.narrow = nn.Linear(encoder.dim, q)
        self.gap_Q = nn.Parameter(0.02 * torch.randn(q))
        self.place_LQ = nn.Parameter(0.02 * torch.randn(1 + count, q))
        block = partial(nn.TransformerEncoderLayer, batch_first=True, norm_first=True)
        blocks = (
            block(q, config.decoder_heads, 4 * q, dropout=0.0, activation="gelu")
            for _ in range(config.decoder_depth)
        )
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(q))
        self.paint = nn.Linear(q, 3 * self.patch**2)

    def step(self, views: Sequence[Tensor]) -> Step:
        x_BCHW, dice_B1HW = views
        dice_BL = dice_B1HW[:, 0, :: self.patch, :: self.patch].flatten(1)
        order_BL = dice_BL.argsort(1)  # the first J patches of this order are kept
        f_BJD = self.encode(x_BCHW, order_BL[:, : self.kept])
        painted_BLE = self.decode(f_BJD, order_BL.argsort(1))
        loss = distance(painted_BLE, self.patches(x_BCHW), order_BL[:, self.kept :])
        return Step(loss, {"spread": spread(f_BJD[:, 0])})

    def encode(self, x_BCHW: Tensor, kept_BJ: Tensor) -> Tensor:
        """Tokens of the CLS and the kept patches, (B, 1 + J, D)."""
        e = self.encoder
        t_BLD = e.patch_embed(x_BCHW)
        t_BLD = t_BLD.flatten(1, -2) + e.pos_embed[:, 1:]
        t_BJD = t_BLD.gather(1, kept_BJ[:, :, None].expand(-1, -1, e.dim))
        cls_B1D = (e.cls_token + e.pos_embed[:, :1]).expand(len(x_BCHW), -1, -1)
        return e.norm(e.blocks(e.norm_pre(torch.cat((cls_B1D, t_BJD), 1))))

    def decode(self, f_BJD: Tensor, back_BL: Tensor) -> Tensor:
        """Pixels (B, L, E) of every patch; `back` undoes the order in which patches were drawn."""
        t_BJQ = self.narrow(f_BJD)
        gaps_BLQ = self.gap_Q.to(t_BJQ.dtype).expand(len(t_BJQ), back_BL.shape[1] - self.kept, -1)
        t_BLQ = torch.cat((t_BJQ[:, 1:], gaps_BLQ), 1)
        t_BLQ = t_BLQ.gather(1, back_BL[:, :, None].expand_as(t_BLQ))
        t_BLQ = torch.cat((t_BJQ[:, :1], t_BLQ), 1) + self.place_LQ
        return self.paint(self.decoder(t_BLQ)[:, 1:])

    def patches(self, x_BCHW: Tensor) -> Tensor:
        """(B, L, E), each patch's own mean and deviation removed."""
        x_BEL = F.unfold(x_BCHW.float(), self.patch, stride=self.patch)
        return (
            (x_BEL - x_BEL.mean(1, keepdim=True)) / (x_BEL.var(1, keepdim=True) + 1e-6).sqrt()
        ).mT


@in_float32
def distance(painted_BLE: Tensor, target_BLE: Tensor, hidden_BL: Tensor) -> Tensor:
    """Mean squared error over the hidden patches alone."""
    error_BL = (painted_BLE - target_BLE).square().mean(2)
    return error_BL.gather(1, hidden_BL).mean()
