"""The same pretraining by others' means: how many times as many views a second?

    python tests/benchmarks/bench_peers.py            # minutes on 2 cores
    pip install kornia lightly                        # for those two, else they are left out

SimCLR, one backbone, batch and image size, the same images; each loop runs in turn, several rounds:

    medssl           `pretrain`, as trials call it: with a look at the encoder after each epoch
    medssl, bare     its views and its step alone, as the others are measured
    pil, our step    torchvision's transforms of PIL images in a DataLoader on all cores, our step:
                     what differs is the input alone
    pil              the same in float32 on a CPU (autocast on a GPU), NCHW: solo-learn's recipe
    lightly          its example: SimCLRTransform, SimCLRProjectionHead, NTXentLoss, a DataLoader
    kornia           its batched augmentation on the device, our step
    views alone      medssl's and kornia's augmentation without a step; PIL's is in bench_views.py

Success: 10 times `pil` on a GPU with 8 workers, as fast on 2 cores; faster than lightly and kornia.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median

import torch
from bench_step import Ceiling, record, work
from bench_views import pil_pipeline
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medssl import datasets, pretrain, views
from medssl._work import Checkpoint
from medssl.spec import EncoderSpec
from medssl.store import Store

ROUNDS, SKIPPED = 3, 2  # batches in which workers start and kernels are chosen
CASES = {  # backbone, image size, batch, images
    "cpu": [("resnet/18-7x7", 28, 128, 2048)],
    "cuda": [("resnet/50-7x7", 64, 256, 16384), ("vit/small-16", 64, 256, 16384)],
}

Batches = Iterable[list[Tensor]]  # of views


class Pairs(Dataset):
    """Two views of each image, made one image at a time, as torchvision's recipes do."""

    def __init__(self, images: datasets.Images, pipelines: list[Callable]):
        self.images, self.pipelines = images, pipelines

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = Image.fromarray(self.images.x_NHWC[index])
        return [pipeline(image) for pipeline in self.pipelines]


def loader(images: datasets.Images, batch: int, pipelines: list[Callable]) -> DataLoader:
    workers = {"num_workers": os.cpu_count() or 1, "persistent_workers": True}
    dealt = {"shuffle": True, "drop_last": True, "pin_memory": torch.cuda.is_available()}
    return DataLoader(Pairs(images, pipelines), batch, **dealt, **workers)


class Plain(Ceiling):
    """The method as a research fork steps it: NCHW, float32 on a CPU."""

    def __init__(self, spec: EncoderSpec, images: datasets.Images, where: torch.device):
        super().__init__(spec, images, where)
        self.method.to(memory_format=torch.contiguous_format)

    def step(self, batch: list[Tensor]) -> None:
        with torch.autocast(self.where.type, torch.float16, enabled=self.where.type == "cuda"):
            loss, _ = self.method.step(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Lightly:
    """lightly's SimCLR example, around our encoder."""

    def __init__(self, spec: EncoderSpec, images: datasets.Images, where: torch.device):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.encoder = pretrain.initial(spec).encoder.to(where).train()
        dim, recipe = self.encoder.dim, dict(spec.recipe)
        self.head = SimCLRProjectionHead(dim, recipe["hidden_dim"], recipe["out_dim"]).to(where)
        self.loss = NTXentLoss(recipe["temperature"])
        both = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer, self.where = torch.optim.SGD(both, lr=0.06), where

    def step(self, batch: list[Tensor]) -> None:
        first, second = (self.head(self.encoder(x)) for x in batch)
        loss = self.loss(first, second)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def lightly_pipelines(size: int) -> list[Callable]:
    from lightly.transforms import SimCLRTransform

    both = SimCLRTransform(size, gaussian_blur=0.5 if size > 32 else 0.0)  # its CIFAR example's
    return both.transforms


class Kornia:
    """kornia's transforms of whole batches, with the preset's numbers."""

    def __init__(self, spec: EncoderSpec, images: datasets.Images, where: torch.device):
        import kornia.augmentation as K

        size, self.batch, self.where = spec.image_size, spec.batch_size, where
        self.x_NCHW = torch.from_numpy(images.x_NHWC).permute(0, 3, 1, 2).to(where)
        taps = 2 * (8 if size > 32 else 6) + 1
        self.pipelines = [
            K.AugmentationSequential(
                K.RandomResizedCrop((size, size), view.scale, view.ratio, resample="bicubic"),
                K.RandomHorizontalFlip(view.flip),
                K.ColorJitter(
                    view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter
                ),
                K.RandomGrayscale(p=view.grayscale),
                K.RandomGaussianBlur((taps, taps), view.sigma, p=view.blur),
                K.RandomSolarize(0.0, 0.0, p=view.solarise),
                K.Normalize(torch.full((3,), 0.5), torch.full((3,), 0.25)),
            )
            for view in views.PRESETS[spec.views]
        ]

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(len(self.x_NCHW), device=self.where)
        for picked in order.split(self.batch):
            x_BCHW = self.x_NCHW[picked].float().div_(255).expand(-1, 3, -1, -1)
            with torch.no_grad():
                made = [pipeline(x_BCHW) for pipeline in self.pipelines]
            yield made


class Ours:
    """medssl's views of whole batches."""

    def __init__(self, spec: EncoderSpec, images: datasets.Images, where: torch.device):
        self.x_NCHW = torch.from_numpy(images.x_NHWC).permute(0, 3, 1, 2).to(where)
        self.generator = torch.Generator(where).manual_seed(0)
        self.batch, self.preset, self.where = spec.batch_size, spec.views, where

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(len(self.x_NCHW), device=self.where)
        for picked in order.split(self.batch):
            x_BCHW = self.x_NCHW[picked]
            level_BC = torch.full(x_BCHW.shape[:2], 0.5, device=self.where)
            yield views.make("two_crops", x_BCHW, level_BC, level_BC, self.preset, self.generator)


def rate(batches: Batches, step: Callable[[list[Tensor]], object], where: torch.device) -> float:
    """Views a second, from the first batch that is not skipped to the end of an epoch."""
    started, seen = 0.0, 0
    for place, batch in enumerate(batches):
        if place == SKIPPED:
            wait(where)
            started = time.perf_counter()
        step([x.to(where, non_blocking=True) for x in batch])
        seen += sum(map(len, batch)) * (place >= SKIPPED)
    wait(where)
    return seen / (time.perf_counter() - started)


def wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize()


def of_medssl(spec: EncoderSpec, images: datasets.Images, where: torch.device) -> float:
    """Of the second of two epochs of `pretrain`, whole."""
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        saved = Checkpoint(lambda: None, lambda state: store.write("c.pt", state), 60.0)

        def report(curve: list[dict[str, float]]) -> None:
            wait(where)
            ends.append(time.perf_counter())

        pretrain.pretrain(spec, images, where, report, saved)
    return 2 * (len(images) // spec.batch_size) * spec.batch_size / (ends[1] - ends[0])


def measure(backbone: str, size: int, batch: int, count: int, where: torch.device) -> dict:
    spec, images = work("phantom/cells", backbone, size, batch, 2, count)
    ours, plain = Ceiling(spec, images, where), Plain(spec, images, where)
    pil = loader(images, batch, [pil_pipeline(view, size) for view in views.PRESETS[spec.views]])
    loops: dict[str, Callable[[], float]] = {
        "medssl": lambda: of_medssl(spec, images, where),
        "medssl, bare": lambda: rate(Ours(spec, images, where), ours.step, where),
        "pil, our step": lambda: rate(pil, ours.step, where),
        "pil": lambda: rate(pil, plain.step, where),
        "medssl, views alone": lambda: rate(Ours(spec, images, where), list, where),
    }
    try:
        theirs = Lightly(spec, images, where)
        pairs = loader(images, batch, lightly_pipelines(size))
        loops["lightly"] = lambda: rate(pairs, theirs.step, where)
    except ImportError as no:
        print(f"without lightly: {no}")
    try:
        batches = Kornia(spec, images, where)
        loops["kornia"] = lambda: rate(batches, ours.step, where)
        loops["kornia, views alone"] = lambda: rate(batches, list, where)
    except ImportError as no:
        print(f"without kornia: {no}")
    found: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, loop in loops.items():
            found[name].append(loop())
    mid = {name: median(rates) for name, rates in found.items()}

    def times(name: str) -> dict[str, float]:
        alone = "alone" in name
        others = {k: v for k, v in mid.items() if not k.startswith("medssl")}
        return {k: round(mid[name] / v, 2) for k, v in others.items() if alone == ("alone" in k)}

    return {
        "backbone": backbone,
        "image_size": size,
        "batch": batch,
        "images": len(images),
        "preset": spec.views,
        "workers": os.cpu_count(),
        "views_per_s": {name: round(value) for name, value in mid.items()},
        "ratio": {name: times(name) for name in mid if name.startswith("medssl")},
    }


if __name__ == "__main__":
    record("peers", measure, CASES)
