"""What a frozen encoder says of every image: once per (encoder, dataset, split), for all to use.

    uint8 images, uncropped -> normalised as in pretraining -> encoder in eval mode -> (N, D)

The same normalisation as in pretraining, each image by its own set's training statistics: the
reference code's differ between the two, which costs accuracy for no reason. What comes from
elsewhere, to be told apart or to be judged untrained, is normalised as the source is: its own
statistics would say where it is from, and a model that meets it has none of it.
"""

import copy
from collections.abc import Callable, Hashable

import numpy as np
import torch
from torch import Tensor, nn

from medssl._work import Checkpoint
from medssl.datasets import Images
from medssl.datasets._splits import scarce, shots, subset
from medssl.device import autocast, float32
from medssl.evals import Change, Features

# N images, B at a time, C channels, D features, K classes

Load = Callable[..., Features]  # (dataset, split, whose mean and spread) -> of the whole split


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Images,
    device: torch.device,
    chunk: int = 512,
    exact: bool = False,
    change: Change | None = None,
) -> Tensor:
    """Features (N, D) float32 on the host; `chunk` images at a time sets memory, not the answer.

    `exact` computes in float32 where the device is faster in bfloat16 or TF32; `change` is done to
    pixels in 0..1, of images whose place in the set it is told.
    """
    was_training = encoder.training
    encoder.to(device, memory_format=torch.channels_last).eval()
    rows = []
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        x_BCHW = torch.from_numpy(images.x_NHWC[part]).to(device).permute(0, 3, 1, 2) / 255
        if change:
            x_BCHW = change(x_BCHW, torch.arange(start, start + len(x_BCHW), device=device))
        domain_B = images.domain_N[part]
        mean_BC11, std_BC11 = (
            torch.from_numpy(s[domain_B]).to(device)[:, :, None, None]
            for s in (images.mean_DC, images.std_DC)
        )
        x_BCHW = ((x_BCHW - mean_BC11) / std_BC11).expand(-1, 3, -1, -1)
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        with float32() if exact else autocast(device):
            rows.append(encoder(x_BCHW).float().cpu())
    encoder.train(was_training)
    return torch.cat(rows)


class Judged:
    """evals.Subject for one cell: target and source, and the share of labels that is known.

    `made` is shared by cells of one encoder and holds what the last of them made `once`; `alike` is
    what two cells must have in common to share it.
    """

    def __init__(
        self,
        encoder: Callable[[], nn.Module],
        load: Load,
        target: str,
        task: str,
        label_fraction: float = 1.0,
        subset_seed: int = 0,
        each: int = 0,
        images: Callable[[str, str], Images] | None = None,
        device: torch.device | None = None,
        seed: int = 0,
        source: str = "",
        alike: Hashable = None,
        made: dict | None = None,
        checkpoint: Checkpoint | None = None,
    ):
        self.task, self.target, self.seed = task, target, seed
        self.source = source or target
        self.live = False  # whether a model ran here, and not features alone were asked for
        self.scarce = ""  # classes with fewer images than `each`, once labels were asked for
        self.labelled = 0  # training images whose labels are known, then too
        self.device, self.checkpoint = device or torch.device("cpu"), checkpoint
        self._encoder, self._load, self._images = encoder, load, images
        self._fraction, self._subset, self._each = label_fraction, subset_seed, each
        self._alike, self._made = alike, made
        self._read: dict[str, Images] = {}  # splits, read once for as long as this cell lasts

    def features(self, split: str, dataset: str | None = None) -> Features:
        part = "train" if split == "unlabeled" else split
        whole = self._load(dataset or self._of(split), part, self.source)
        if split == "unlabeled":
            return Features(whole.x_ND, torch.full_like(whole.t_NK, torch.nan))
        if split != "train" or (keep := self._known(whole.t_NK.numpy())) is None:
            return whole
        return Features(whole.x_ND[keep], whole.t_NK[keep])

    def images(self, split: str) -> Images:
        if split not in self._read:
            whole = self._images(self._of(split), split)
            if self._of(split) != self.source:
                like = self.images("val")
                whole = whole.through(like.mean_DC, like.std_DC)
            keep = self._known(whole.t_NK) if split == "train" else None
            self._read[split] = whole if keep is None else whole.part(keep)
        return self._read[split]

    def _of(self, split: str) -> str:
        return self.target if split == "test" else self.source

    def _known(self, t_NK: np.ndarray) -> np.ndarray | None:
        """Which training images keep their label; None: all."""
        keep = None
        if self._each:
            self.scarce = scarce(t_NK, self._each)
            keep = shots(t_NK, self._each, self._subset)
        elif self._fraction < 1:
            keep = subset(t_NK, self._fraction, self._subset)
        self.labelled = len(t_NK if keep is None else keep)
        return keep

    def once(self, make: Callable[[], object]) -> object:
        if self._made is None:
            return make()
        if self._alike not in self._made:
            self._made.clear()
            self._made[self._alike] = make(), self.scarce, self.labelled
        made, self.scarce, self.labelled = self._made[self._alike]
        return made

    def encoder(self) -> nn.Module:
        return copy.deepcopy(self._encoder()).to(self.device)

    def outputs(self, model: nn.Module, split: str, change: Change | None = None) -> Tensor:
        self.live = True
        return extract(model, self.images(split), self.device, change=change)
