"""The contract of a dataset: one file, one `load`; images as they lie on disk, and how to see them.

    load("medmnist/breastmnist", "train", 64) -> Images

A name is FAMILY/VARIANT, and FAMILY is a file here. "medmnist/organamnist+organcmnist" is a union:
its members' images one after another, their classes side by side.

Besides `load`, a family has `check` and `names`; `ready` where it has files; and `about`, if it
knows something of its sets before a file is opened, so that a plan can say what will not work, and
whose labels mean the same.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medssl import registry

# N images, H rows, W columns, C channels (1 or 3), K classes, D members of a union

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Images:
    """One split of one dataset."""

    x_NHWC: np.ndarray  # uint8, square; C = 1 where the set is grey
    t_NK: np.ndarray  # float32, one-hot or multi-hot
    task: str  # MedMNIST's: multi-class | binary-class | ordinal-regression | multi-label, ...
    classes: tuple[str, ...]  # K names
    mean_DC: np.ndarray  # float32 in [0, 1], of the training split whatever this split is
    std_DC: np.ndarray
    domain_N: np.ndarray  # int64, each image's row of mean_DC: its member of the union
    md5: str  # of the file, or of the content where there is none

    def __len__(self) -> int:
        return len(self.x_NHWC)

    def part(self, keep: np.ndarray) -> "Images":
        """Some of the images, by their indices; statistics stay those of the whole."""
        own = {f: getattr(self, f)[keep] for f in ("x_NHWC", "t_NK", "domain_N")}
        return replace(self, **own)

    def through(self, mean_DC: np.ndarray, std_DC: np.ndarray) -> "Images":
        """The images as one sees them who takes them for another set's, by the mean of its members.

        A stranger belongs to no member of a union.
        """
        domain_N = np.zeros(len(self), np.int64)
        mean_1C, std_1C = (a.mean(0, keepdims=True) for a in (mean_DC, std_DC))
        return replace(self, mean_DC=mean_1C, std_DC=std_1C, domain_N=domain_N)


Labels = tuple[str, tuple[str, ...]]  # a task, and the names of its classes


class About(NamedTuple):
    """What is known of a dataset without its files; None: nothing."""

    channels: int | None = None  # 1: grey
    rarest: int | None = None  # training images of its rarest class, at most
    labels: Labels | None = None
    images: int | None = None  # of the training split


def load(name: str, split: str, size: int, root: Path | None = None) -> Images:
    """`split` of dataset `name` at `size` pixels; ValueError with a remedy where it cannot be had.

    `root` is the folder of the files, for families that read files.
    """
    family, members = parts(name)
    module = registry.load("datasets", family)
    found = [module.load(member, split, size, root) for member in members]
    return found[0] if len(found) == 1 else _union(members, found)


def check(name: str, size: int, root: Path | None = None) -> list[str]:
    """What stands between this machine and the dataset, a sentence each. Reads no image."""
    try:
        family, members = parts(name)
    except ValueError as wrong:
        return [str(wrong)]
    module = registry.load("datasets", family)
    return [problem for member in members for problem in module.check(member, size, root)]


def wrong(name: str, size: int) -> list[str]:
    """What no file can mend: an unknown family, name or size."""
    try:
        family, members = parts(name)
    except ValueError as problem:
        return [str(problem)]
    module = registry.load("datasets", family)
    known = module.names() if size in getattr(module, "SIZES", [size]) else []
    return [p for member in members if member not in known for p in module.check(member, size)]


def about(name: str) -> About:
    """What the family knows of it without a file; of a union, what is known of all members.

    ValueError for a family or a name that there is not.
    """
    family, members = parts(name)
    module = registry.load("datasets", family)
    if unknown := [member for member in members if member not in module.names()]:
        told = registry.choose(unknown[0], module.names())
        raise ValueError(f"no {unknown[0]!r} in {family}: {told}")
    known = {m: module.about(m) if hasattr(module, "about") else About() for m in members}
    channels, labels, images = (
        [getattr(one, of) for one in known.values()] for of in ("channels", "labels", "images")
    )
    return About(
        None if None in channels else max(channels),
        min((one.rarest for one in known.values() if one.rarest is not None), default=None),
        None if None in labels else _united(dict(zip(members, labels, strict=True))),
        None if None in images else sum(images),
    )


def ready(name: str, size: int, root: Path | None = None) -> None:
    """Fetches what is absent and verifies every file, once; ValueError with a remedy, OSError
    where a download failed."""
    family, members = parts(name)
    module = registry.load("datasets", family)
    for member in members:
        if hasattr(module, "ready"):  # a family with files
            module.ready(member, size, root)
        elif problems := module.check(member, size, root):
            raise ValueError(problems[0])


def parts(name: str) -> tuple[str, list[str]]:
    """("medmnist", ["organamnist", "organcmnist"]) of "medmnist/organamnist+organcmnist"."""
    family = registry.known("datasets", name)
    variant = name.partition("/")[2]
    if not variant or not all(variant.split("+")):
        raise ValueError(f"{name!r} names no dataset: write {family}/NAME, or {family}/A+B")
    if "/" in variant:
        raise ValueError(f"{name!r}: a union has one family, named once: {family}/A+B")
    return family, variant.split("+")


def members(name: str) -> set[str]:
    """{"medmnist/organamnist", "medmnist/organcmnist"} of their union; of a set alone itself."""
    family, _, variant = name.partition("/")
    return {f"{family}/{one}" for one in variant.split("+")}


def statistics(x_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, (1, C) float32 in [0, 1], exact from counts."""
    level_256 = np.arange(256) / 255
    mean_C, std_C = [], []
    for c in range(x_NHWC.shape[3]):
        share_256 = np.bincount(x_NHWC[..., c].ravel(), minlength=256) / x_NHWC[..., c].size
        mean = (share_256 * level_256).sum()
        mean_C.append(mean)
        std_C.append((share_256 * (level_256 - mean) ** 2).sum() ** 0.5)
    return np.float32([mean_C]), np.float32([std_C]).clip(min=1 / 255)


def _union(members: list[str], found: list[Images]) -> Images:
    channels = max(images.x_NHWC.shape[3] for images in found)
    t_NK = np.zeros((sum(map(len, found)), sum(len(i.classes) for i in found)), np.float32)
    row = column = 0
    for images in found:
        t_NK[row : row + len(images), column : column + len(images.classes)] = images.t_NK
        row, column = row + len(images), column + len(images.classes)

    def widen(a: np.ndarray) -> np.ndarray:  # grey beside colour becomes colour
        return np.broadcast_to(a, (*a.shape[:-1], channels))

    task, classes = _united({m: (i.task, i.classes) for m, i in zip(members, found, strict=True)})
    return Images(
        x_NHWC=np.concatenate([widen(images.x_NHWC) for images in found]),
        t_NK=t_NK,
        task=task,
        classes=classes,
        mean_DC=np.concatenate([widen(images.mean_DC) for images in found]),
        std_DC=np.concatenate([widen(images.std_DC) for images in found]),
        domain_N=np.repeat(np.arange(len(found)), [len(images) for images in found]),
        md5=hashlib.md5("+".join(i.md5 for i in found).encode()).hexdigest(),
    )


def _united(of: dict[str, Labels]) -> Labels:
    """Those of a union by its members'; of one member its own."""
    if len(of) == 1:
        return next(iter(of.values()))
    many = any(task.startswith("multi-label") for task, _ in of.values())
    classes = tuple(f"{member}: {name}" for member, (_, names) in of.items() for name in names)
    return "multi-label, binary-class" if many else "multi-class", classes
