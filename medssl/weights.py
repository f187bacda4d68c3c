"""What an encoder knows before pretraining: nothing, photographs, or what a file of yours holds.

    random              nothing
    imagenet            ImageNet's labels; for ViT and BiT first those of ImageNet-21k
    imagenet_ssl/NAME   ImageNet without labels, by one method: see _published.py
    dinov2              142 million photographs without labels; for ViTs with LayerScale, "-ls"
    bit                 labels of ImageNet-21k, from which REMEDIS starts
    file:PATH[@SHA]     safetensors, or what torch.save wrote: see _layouts.py for whose
    encoder:ID          another encoder of the same store, to go on from
    supervised:DATASET  one that learned the labels of DATASET from random weights, made first;
                        supervised:DATASET@INIT from a file's: see supervised.py

Position and patch embeddings are resampled to the encoder's, a stem of one channel is spread over
three, and a stem that does not fit (3x3) stays random. What was changed, left and not used is in
`Loaded`, in the trial's log and in the encoder's file. Nothing in a file is executed.

Published files are looked for in MEDSSL_WEIGHTS, in the caches, then on the network, and compared
with their SHA-256 where it is known; it is in every row in any case. `ready` keeps them in
MEDSSL_WEIGHTS where that is set, so that the nodes of a cluster find what one of them has fetched.
A PATH that is not absolute is looked for in MEDSSL_WEIGHTS alone, because workers run in folders of
their own.

An id holds the name of an init and not the file's content. So a store remembers which file was
meant by each `file:PATH`, and by each published name without a full SHA-256 of its own (`pin`,
`changed`), and refuses another under the same name; with @ and 12 or more digits of its SHA-256,
the content is part of the name.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medssl import _files, _layouts, _published
from medssl._published import Published
from medssl.spec import supervised


def _nowhere(name: str) -> bool:
    return False  # where there is no store


OWN = ("file:PATH", "encoder:ID", "supervised:DATASET")


@dataclass(frozen=True)
class Loaded:
    """What an init put into an encoder."""

    sha256: str = ""  # of the file; empty where there is none
    left_random: tuple[str, ...] = ()  # tensors of the encoder that found nothing of their shape
    changed: tuple[str, ...] = ()  # what was resampled, from what to what
    unused: tuple[str, ...] = ()  # modules of the file that the encoder has no use for
    learned: tuple[str, ...] = ()  # datasets whose labels it has seen, where it is a store's own
    seen: tuple[str, ...] = ()  # datasets whose training images it has seen, likewise


def wrong(backbone: str, init: str) -> list[str]:
    """What no file can mend: an unknown init, or one that the backbone has not."""
    if found := supervised(init):
        if supervised(found[1]) or source(found[1]):
            return [f"init {init!r} starts from {found[1]!r}: after @ name no encoder of the store"]
        return wrong(backbone, found[1])
    if init == "random" or _named(init) or source(init) or _published.of(backbone, init):
        return []
    here = [i for i in _published.FILES if _published.of(backbone, i)]
    has = f"{backbone} has {', '.join(['random', *here, *OWN])}"
    if init not in _published.FILES:
        known = ", ".join(["random", *_published.FILES, *OWN])
        return [f"no init {init!r}: choose from {known}; {has}"]
    owners = ", ".join(_published.FILES[init])
    return [f"no weights of init {init!r} for {backbone}, only for {owners}: {has}"]


def source(init: str) -> str:
    """The name in the store of the encoder that `encoder:ID` starts from; else empty."""
    match = re.fullmatch("encoder:([0-9a-f]{12})", init)
    return f"encoders/{match[1]}.safetensors" if match else ""


def check(backbone: str, init: str, has: Callable[[str], bool] = _nowhere) -> list[str]:
    """What stands between this machine and the init, a sentence each; imports no torch.

    `has` says whether the store has a file. A supervised init is an encoder to be made, whose own
    init is asked for by itself.
    """
    if (problems := wrong(backbone, init)) or init == "random" or supervised(init):
        return problems
    if kept := source(init):
        return [] if has(kept) else [f"{kept} is not in the store: run the sweep that makes it"]
    if not (path := _present(backbone, init)):
        return [_absent(backbone, init)]
    if _named(init):  # a published file is compared by `ready`: this reads no hundreds of MB
        return _unlike(path, _sha256(path), _named(init)[1])
    return []


def ready(backbone: str, init: str, has: Callable[[str], bool] = _nowhere) -> None:
    """Fetches what is absent, compares it, and keeps it in MEDSSL_WEIGHTS.

    ValueError with a remedy; OSError, with one too, where a download failed, which may pass.
    """
    if problems := check(backbone, init, has) if source(init) else wrong(backbone, init):
        raise ValueError(problems[0])
    if init == "random" or source(init) or supervised(init):
        return
    path, promised = _file(backbone, init)
    if problems := _unlike(path, _sha256(path), promised):
        raise ValueError(problems[0])
    folder = os.environ.get("MEDSSL_WEIGHTS")
    if folder and not _named(init) and not _offline(name := _published.of(backbone, init).name):
        with (
            contextlib.suppress(OSError),  # a folder to read from alone: others fetch it themselves
            open(path, "rb") as ours,
            _files.whole(Path(folder).expanduser() / name) as draft,
        ):
            shutil.copyfileobj(ours, draft, 1 << 20)


def initialise(encoder, backbone: str, init: str, kept: bytes | None = None) -> Loaded:
    """Puts the init's weights into `encoder`, in place; "random" leaves it as it was built.

    `kept` is the store's file of the encoder that an init `encoder:ID` or `supervised:DATASET` goes
    on from. ValueError, and OSError as of `ready`.
    """
    if problems := wrong(backbone, init):
        raise ValueError(problems[0])
    if init == "random":
        return Loaded()
    if source(init) or supervised(init):
        name = source(init) or f"{init}.safetensors"
        if kept is None:
            raise ValueError(f"{name} is not in the store: run the sweep that makes it")
        path, promised, content = Path(name), "", kept
    else:
        path, promised = _file(backbone, init)
        content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()  # of what is loaded, not of what was there before
    if problems := _unlike(path, sha256, promised):
        raise ValueError(problems[0])
    try:
        filled = _layouts.fit(encoder, _layouts.read(content, path.suffix))
    except ValueError as why:
        raise ValueError(f"init {init!r} of {backbone}: {path} {why}") from None
    header = _layouts.header(content)
    past = (tuple(header.get(what, ())) for what in ("learned", "seen"))
    return Loaded(sha256, *map(tuple, filled), *past)


def pin(backbone: str, init: str) -> str:
    """Where a store remembers which file was meant by `init`; empty where its name says it."""
    if named := _named(init):
        name, known = init, named[1]
    elif file := _published.of(backbone, init):
        name, known = file.name, len(file.sha256) == 64
    else:
        return ""
    return "" if known else f"inits/{hashlib.sha256(name.encode()).hexdigest()[:12]}.sha256"


def changed(backbone: str, init: str, read: Callable[[str], bytes | None]) -> list[str]:
    """A sentence where the file is another one than the one that the store remembers.

    `read` gives what the store has under a name. A file that is absent is not compared.
    """
    name = pin(backbone, init)
    was = ((name and read(name)) or b"").decode()
    if not was or not (path := _present(backbone, init)) or was == (now := _sha256(path)):
        return []
    other = f"{init if _named(init) else f'file:{path}'}@{now[:12]}"
    return [
        f"{path}, of init {init!r}, is not the file that this store knows by that name (SHA-256 "
        f"{was[:12]}..., now {now[:12]}...): put that one back, or name this one {other}"
    ]


def _named(init: str) -> tuple[str, str] | None:
    """(PATH, SHA or "") of "file:PATH[@SHA]"; None for any other init."""
    match = re.fullmatch(r"file:(.+?)(?:@([0-9a-fA-F]{12,64}))?", init)
    return (match[1], (match[2] or "").lower()) if match else None


def _located(path: str) -> Path | None:
    """The user's file: where its path says, or in MEDSSL_WEIGHTS where that is not absolute."""
    whole = Path(path).expanduser()
    if not whole.is_absolute():
        return _offline(path)
    return whole if whole.is_file() else None


def _offline(name: str) -> Path | None:
    folder = os.environ.get("MEDSSL_WEIGHTS")
    path = Path(folder or "/").expanduser() / name
    return path if folder and path.is_file() else None


def _cached(file: Published) -> Path | None:
    """From the hub's cache, or from ours for what is not on the hub."""
    if file.url:
        return _cache(file) if _cache(file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.hub, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _cache(file: Published) -> Path:
    return _files.cache() / "weights" / file.name


def _present(backbone: str, init: str) -> Path | None:
    """The init's file where this machine has it."""
    if named := _named(init):
        return _located(named[0])
    file = _published.of(backbone, init)
    return _offline(file.name) or _cached(file)


def _file(backbone: str, init: str) -> tuple[Path, str]:
    """The init's file, fetched if need be, and what its SHA-256 must begin with."""
    path = _present(backbone, init) or _fetched(backbone, init)
    if named := _named(init):
        return path, named[1]
    blob = path.resolve().name  # the hub's cache names a file by its SHA-256
    known = _published.of(backbone, init).sha256
    return path, known or (blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "")


def _fetched(backbone: str, init: str) -> Path:
    """From the network into the caches; OSError where that fails, which may pass."""
    if _named(init):  # a file of the user's own, which nobody else has
        raise ValueError(_absent(backbone, init))
    file = _published.of(backbone, init)
    try:
        if file.hub:
            from huggingface_hub import hf_hub_download  # which gives up on a stalled one by itself

            return Path(hf_hub_download(file.hub, "model.safetensors"))
        _files.download(
            file.url, _cache(file), lambda draft: _unlike(draft, _sha256(draft), file.sha256)
        )
        return _cache(file)
    except Exception as failed:  # whatever a client raises when it has no network
        why = f"{type(failed).__name__}: {str(failed).partition(chr(10))[0]}"
        why = f"the download failed: {why}" if file.hub else str(failed)
        raise OSError(f"{_absent(backbone, init)} ({why})") from None


def _absent(backbone: str, init: str) -> str:
    """What to get, and where to put it."""
    if named := _named(init):
        return (
            f"there is no {named[0]} for init {init!r}: name it by its whole path, or put it into "
            f"the folder that MEDSSL_WEIGHTS names"
        )
    file = _published.of(backbone, init)
    what = f"model.safetensors of {file.hub} from the Hugging Face hub" if file.hub else file.url
    sha256 = f"SHA-256 {_dotted(file.sha256)}" if file.sha256 else "its SHA-256 is not known to us"
    return (
        f"init {init!r} of {backbone} is not there: get {what} ({sha256}), name it {file.name} and "
        f"set MEDSSL_WEIGHTS to its folder"
    )


def _unlike(path: Path, sha256: str, promised: str) -> list[str]:
    """A sentence where a file's digest does not begin as promised."""
    if sha256.startswith(promised):
        return []
    return [
        f"{path} is not the file that is meant: its SHA-256 is {sha256} and should be "
        f"{_dotted(promised)}: get it again"
    ]


def _dotted(digits: str) -> str:
    return digits if len(digits) == 64 else f"{digits}..."


def _sha256(path: Path) -> str:
    return _hashed(path, path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=64)
def _hashed(path: Path, changed_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
