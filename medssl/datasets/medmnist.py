"""MedMNIST's twelve 2D sets at 28, 64, 128 and 224 px, from the official files and nothing else.

    medmnist/NAME, SIZE -> ROOT/NAME.npz (28 px) or ROOT/NAME_SIZE.npz -> MD5 checked -> Images

A file is hashed once and remembered by path, size and time; whatever is not byte for byte the
published file is refused, so a number in the table is a number on the published images. Images are
unpacked once on each machine, and memory-mapped: all its trials share one copy of them. What each
set is (task, classes, MD5, address) is the `medmnist` package's INFO, read without its torch code.
Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medssl import registry
from medssl._files import cache, download, whole
from medssl.datasets import SPLITS, About, Images, statistics
from medssl.spec import EncoderSpec

SIZES = (28, 64, 128, 224)  # pixels


def load(variant: str, split: str, size: int, root: Path | None = None) -> Images:
    """One split of one official file, which is fetched first where it is absent and reachable."""
    info, (task, classes) = _info(variant), about(variant).labels
    path, md5 = ready(variant, size, root)
    with np.load(path) as archive:
        label_NL = archive[f"{split}_labels"]
    x_NHWC = _images(variant, split, path, md5)
    name, shape = f"{md5}-statistics-v{EncoderSpec.version}", (2, 1, x_NHWC.shape[3])
    mean_1C, std_1C = _placed(name, shape, lambda: _statistics(variant, path, md5))
    return Images(
        x_NHWC=x_NHWC,
        t_NK=_targets(label_NL, info),
        task=task,
        classes=classes,
        mean_DC=mean_1C,
        std_DC=std_1C,
        domain_N=np.zeros(len(x_NHWC), np.int64),
        md5=md5,
    )


def check(variant: str, size: int, root: Path | None = None) -> list[str]:
    """An unknown name or size, or a file that is not there; reads no file."""
    try:
        path = _path(variant, size, root)
        return [] if path.exists() else [_absent(variant, size, path)]
    except ValueError as wrong:
        return [str(wrong)]


def ready(variant: str, size: int, root: Path | None = None) -> tuple[Path, str]:
    """The file's path and MD5; fetched if absent, verified once; errors have a remedy."""
    path = _path(variant, size, root)
    md5 = _info(variant)[_key("MD5", size)]
    if not path.exists():
        fetch(variant, size, root)
    mark = _mark(path)
    if not mark.exists():
        verify(variant, size, root)
        _remember(mark)
    return path, md5


def verify(variant: str, size: int, root: Path | None = None) -> None:
    """ValueError unless the file is the published one and says what INFO says of it."""
    path, info = _path(variant, size, root), _info(variant)
    if not path.exists():
        raise ValueError(_absent(variant, size, path))
    expected, found = info[_key("MD5", size)], _md5(path)
    remedy = f"delete it and run: medssl data fetch medmnist/{variant} --size {size}"
    if found != expected:
        whose = _whose(found)
        why = (
            "is empty (0 bytes)"
            if not path.stat().st_size
            else f"is really {whose} under the wrong name"
            if whose
            else "is truncated or no MedMNIST file (no zip archive)"
            if not zipfile.is_zipfile(path)
            else "differs from the published file"
        )
        raise ValueError(f"{path} {why}: its MD5 is {found}, not {expected}; {remedy}")
    try:
        _agrees(path, info, size)
    except (KeyError, OSError, zipfile.BadZipFile) as broken:
        raise ValueError(f"{path} cannot be read ({broken}); {remedy}") from None
    except ValueError as wrong:
        raise ValueError(f"{path}: {wrong}; {remedy}") from None


def fetch(variant: str, size: int, root: Path | None = None) -> Path:
    """Downloads the official file, whole or not at all; OSError, which may pass."""
    path, info = _path(variant, size, root), _info(variant)
    md5 = info[_key("MD5", size)]

    def wrong(draft: Path) -> list[str]:
        return [] if (found := _md5(draft)) == md5 else [f"what came has MD5 {found}, not {md5}"]

    try:
        download(info[_key("url", size)], path, wrong)
    except OSError as failed:  # no route, no such host, a proxy's refusal, a read-only folder
        raise OSError(f"{_absent(variant, size, path)} ({failed})") from None
    return path


def names() -> list[str]:
    """The twelve 2D sets."""
    return sorted(k for k, v in _all().items() if not k.endswith("3d") and "n_channels" in v)


def about(variant: str) -> About:
    """By INFO, which counts no classes: the rarest has at most its share of the training images."""
    info = _info(variant)
    images = info["n_samples"]["train"]
    many = info["task"].startswith("multi-label")
    labels = info["task"], tuple(info["label"].values())
    return About(info["n_channels"], images if many else images // len(labels[1]), labels, images)


def folder(root: Path | None = None) -> Path:
    """Where the files are: `root`, else MEDMNIST_ROOT, else medmnist's own ~/.medmnist."""
    return Path(root or os.environ.get("MEDMNIST_ROOT") or Path.home() / ".medmnist")


@functools.cache
def _all() -> dict[str, dict]:
    """medmnist/info.py by its path: `import medmnist` would also import torch and pandas."""
    home = importlib.util.find_spec("medmnist").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("medssl_medmnist_info", Path(home) / "info.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.INFO


def _info(variant: str) -> dict:
    if variant not in names():
        raise ValueError(f"no {variant!r} in medmnist: {registry.choose(variant, names())}")
    return _all()[variant]


def _key(field: str, size: int) -> str:
    return field if size == 28 else f"{field}_{size}"


def _path(variant: str, size: int, root: Path | None) -> Path:
    _info(variant)
    if size not in SIZES:
        raise ValueError(f"medmnist/{variant} has no {size} px: choose from 28, 64, 128, 224")
    return folder(root) / f"{_key(variant, size)}.npz"


def _absent(variant: str, size: int, path: Path) -> str:
    info = _info(variant)
    return (
        f"medmnist/{variant} at {size} px is not there: get {path.name} "
        f"(MD5 {info[_key('MD5', size)]}) from {info[_key('url', size)]} and put it at {path}, "
        f"or set MEDMNIST_ROOT or --data to the folder that holds it"
    )


def _whose(md5: str) -> str | None:
    for name in names():
        for size in SIZES:
            if _all()[name].get(_key("MD5", size)) == md5:
                return f"{name} at {size} px"
    return None


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _mark(path: Path) -> Path:
    """The note that says this very file was verified; a changed file has another."""
    stat = path.stat()
    name = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return cache() / "verified" / name.hexdigest()[:24]


def _remember(mark: Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:  # no home to write to: the next process hashes again
        pass


def _agrees(path: Path, info: dict, size: int) -> None:
    with np.load(path) as archive, zipfile.ZipFile(path) as parts:
        for split in SPLITS:
            with parts.open(f"{split}_images.npy") as member:
                np.lib.format.read_magic(member)
                (n, *image), _, dtype = np.lib.format.read_array_header_1_0(member)
            label_NL = archive[f"{split}_labels"]
            expected = [size, size] if info["n_channels"] == 1 else [size, size, 3]
            if n != info["n_samples"][split] or image != expected or dtype != np.uint8:
                raise ValueError(
                    f"{split} holds {n} images of {image}, not {info['n_samples'][split]} of "
                    f"{expected} bytes"
                )
            if len(label_NL) != n:
                raise ValueError(f"{split} has {n} images but {len(label_NL)} labels")
            _targets(label_NL, info)


def _targets(label_NL: np.ndarray, info: dict) -> np.ndarray:
    """One-hot or multi-hot (N, K) float32 of MedMNIST's (N, 1) class or (N, K) 0/1 labels."""
    classes = len(info["label"])
    many = info["task"].startswith("multi-label")
    highest = 1 if many else classes - 1
    if label_NL.shape[1:] != (classes if many else 1,) or label_NL.max(initial=0) > highest:
        raise ValueError(
            f"labels are {label_NL.shape} up to {label_NL.max(initial=0)}, where {classes} classes "
            f"({info['task']}) allow up to {highest}"
        )
    return np.float32(label_NL) if many else np.eye(classes, dtype=np.float32)[label_NL[:, 0]]


def _channels(x: np.ndarray) -> np.ndarray:
    return x[..., None] if x.ndim == 3 else x


def _images(variant: str, split: str, path: Path, md5: str) -> np.ndarray:
    """(N, H, W, C) uint8."""
    info, size = _info(variant), int(path.stem.partition("_")[2] or 28)
    shape = (info["n_samples"][split], size, size) + (3,) * (info["n_channels"] == 3)
    return _channels(_placed(f"{md5}-{split}", shape, lambda: _member(path, f"{split}_images")))


def _member(path: Path, name: str) -> np.ndarray:
    with np.load(path) as archive:
        return archive[name]


def _statistics(variant: str, path: Path, md5: str) -> np.ndarray:
    """Mean and standard deviation, (2, 1, C)."""
    return np.stack(statistics(_images(variant, "train", path, md5)))


def _placed(name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that this machine unpacks once, and all its processes then share: a memory map.

    Of the user's cache; who writes to the array has a page of its own. Where nothing can be kept
    there, it is made in memory.
    """
    path = cache() / "unpacked" / f"{name}.npy"

    def there() -> np.ndarray | None:
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or cut short
            found = np.asarray(np.load(path, mmap_mode="c"))
            return found if found.shape == shape else None

    if (found := there()) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the second process waits for the first one's
            if (found := there()) is not None:
                return found
            for draft in path.parent.glob(f".{path.name}.*"):  # of one that was killed
                draft.unlink()
            array = make()
            if shutil.disk_usage(path.parent).free < 2 * array.nbytes:
                return array
            with whole(path) as file:
                np.save(file, array)
            return array if (found := there()) is None else found
    except OSError:  # no home to write to
        return make()
