"""One trial: all missing cells of one encoder, from images to rows. Knows no cluster, no tracker.

    cells -> encoder (from the store, or pretrained) -> features per target and split -> rows

Whatever finishes is in the store at once, so a trial that dies loses at most the checkpoint
interval, and one that is run again does only what is missing. What it is doing is in
`progress/ENCODER.json`, the one thing that the live display, `medssl status` and MLflow read.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from medssl import (
    _layouts,
    audit,
    backbones,
    datasets,
    device,
    features,
    monitor,
    registry,
    results,
    search,
    supervised,
    weights,
)
from medssl._work import Checkpoint, Preempted, meanwhile
from medssl.datasets import Images
from medssl.datasets._splits import sample
from medssl.evals import Features
from medssl.features import Judged
from medssl.pretrain import NotFinite, initial, pretrain
from medssl.spec import NONE, SEARCHED, SUPERVISED, Cell, EncoderSpec, parent
from medssl.store import Store

PASSING = OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, Preempted
TOO_LITTLE = "can't allocate memory", "OutOfMemoryError", "MemoryError"  # the first: torch on a CPU
LIBRARIES = ("torch", "timm", "numpy", "scikit-learn", "medmnist", "ray")
PUBLISH_S = 2  # seconds between two writes of the progress file, at least
STEP_S = 10  # of which a long fit tells how far it is
BEAT_S = 60  # at most


def can_pass(error: Exception) -> bool:
    """Whether it is the disk's, the memory's, the device's or the node's: a retry may succeed."""
    return isinstance(error, PASSING) or TOO_LITTLE[0] in str(error)


class CellsFailed(RuntimeError):
    """Some cells of the encoder could not be evaluated; the others are in the store."""


@dataclass(frozen=True)
class Here:
    """Where this trial runs; nothing of it is in an id."""

    device: torch.device
    data: Path | None = None  # folder of dataset files
    code: str = "unknown"  # version and commit, for the rows
    checkpoint_s: float = 120  # seconds
    run: str = ""  # the driver's, of which this is one of several attempts
    retries: int = 3
    leave: Callable[[], bool] = lambda: False  # whether this process has been asked to end


def run(cells: Sequence[Cell], store: Store, here: Here) -> None:
    """Measures the cells, which share one encoder; raises what went wrong after recording it."""
    with _told(cells[0].encoder, len(cells), store, here) as progress:
        made = encoder_of(cells[0].encoder, store, here, progress)
        if failed := evaluate(cells, made, store, here, progress):
            raise CellsFailed("; ".join(failed))


def make(spec: EncoderSpec, store: Store, here: Here) -> None:
    """Puts the encoder into the store, for others to start from; raises like `run`."""
    with _told(spec, 0, store, here) as progress:
        encoder_of(spec, store, here, progress)


class WornOut(RuntimeError):
    """The trial ended before its time once too often. Not worth another retry."""


@contextlib.contextmanager
def _told(spec: EncoderSpec, cells: int, store: Store, here: Here) -> Iterator["Progress"]:
    """The progress of what is done inside, to its end or to the error that ended it."""
    progress = Progress(store, spec, cells, run=here.run)
    try:
        if progress.ended > here.retries:
            raise WornOut(
                f"{progress.ended} attempts ended before their time, the last {progress.last}: "
                f"mend that, and run the sweep again"
            )
        progress.publish("starting")
        with progress.alive():
            yield progress
    except Preempted as asked:
        progress.say(f"preempted {asked}: the next attempt goes on from there")
        progress.publish("preempted")
        raise
    except Exception as error:
        progress.fail(error)
        raise
    progress.publish("finished")


@dataclass
class Progress:
    """What the trial is doing and has logged, published every few seconds."""

    store: Store
    spec: EncoderSpec
    cells: int
    cells_done: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    run: str = ""  # the driver's
    ended: int = 0  # attempts of this run that ended before their time, but for preempted ones
    last: str = ""  # how the last of them ended
    spare: bool = False  # whether one of them had too little memory
    doing: str = ""  # update 1200 of 3678
    started: float = field(default_factory=time.time)  # seconds since 1970
    _at: float = 0.0
    _log: str = ""
    _logged: int = 0  # letters of it that are in the store
    _state: str = ""
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        old = self.store.read(f"logs/{self.spec.id}.log") or b""
        self._log = old.decode(errors="replace")
        self._attempts()
        what = f"{self.spec.method} on {self.spec.dataset}, {self.spec.backbone}, {self.spec.id}"
        self.say(f"{what}; on {socket.gethostname()}, pid {os.getpid()}")

    def _attempts(self) -> None:
        """What became of earlier attempts of this run, by what they said last."""
        try:
            said = json.loads(self.store.read(f"progress/{self.spec.id}.json") or b"{}")
        except ValueError:
            return
        state = said.get("state")
        if not self.run or said.get("run") != self.run or state == "finished":
            return
        self.ended, self.last = said.get("ended", 0), said.get("last", "")
        if state != "preempted":
            self.ended += 1
            without = "without a word, as one that was killed or had too little memory"
            self.last = f"with {said['reason']}" if state == "failed" else without
        self.spare = said.get("spare", False) or any(map(self.last.count, TOO_LITTLE))

    def say(self, line: str) -> None:
        self._log += f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n"

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Publishes in long epochs and evaluations too, or they would be taken for lost."""

        def beat() -> None:
            with contextlib.suppress(OSError):  # the trial itself will meet it
                self.publish(self._state)

        with meanwhile(BEAT_S, beat):
            yield

    def step(self, step: int, steps: int) -> None:
        self.doing = f"update {step} of {steps}"
        self.publish(self._state, every_s=STEP_S)

    def epoch(self, curve: list[dict[str, float]]) -> None:
        self.curve = curve
        self.say(f"epoch {len(curve)}: " + " ".join(f"{k}={v:.4g}" for k, v in curve[-1].items()))
        self.publish("pretraining", every_s=PUBLISH_S)

    def fail(self, error: Exception) -> None:
        self.say("".join(traceback.format_exception(error)))
        self.publish("failed", reason=f"{type(error).__name__}: {error}")

    def publish(self, state: str, reason: str = "", every_s: float = 0) -> None:
        """starting | pretraining | evaluating | finished | failed | preempted; at most once in
        `every_s` seconds."""
        with self._one_at_a_time:
            self._state = state
            if time.monotonic() - self._at >= every_s:
                self._publish(state, reason)

    def _publish(self, state: str, reason: str) -> None:
        self._at = time.monotonic()
        content = {
            "encoder": self.spec.id,
            "state": state,
            "reason": reason,
            "run": self.run,
            "ended": self.ended,
            "last": self.last,
            "spare": self.spare,
            "doing": self.doing,
            "epochs": self.spec.epochs,
            "cells": self.cells,
            "cells_done": self.cells_done,
            "started": self.started,
            "updated": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "curve": self.curve,
        }
        if len(self._log) > self._logged:
            self.store.write(f"logs/{self.spec.id}.log", self._log.encode())
            self._logged = len(self._log)
        self.store.write(f"progress/{self.spec.id}.json", json.dumps(content).encode())


class Made(NamedTuple):
    """An encoder as the store has it, so that what is judged is what is kept."""

    encoder: nn.Module
    about: dict  # what its rows say of it
    digest: str  # of its file
    seen: tuple[
        str, ...
    ]  # datasets whose training images it learned from, its init's before its own


def encoder_of(spec: EncoderSpec, store: Store, here: Here, progress: Progress) -> Made:
    """The encoder from the store, where it is put by pretraining if it is not there."""
    name = f"encoders/{spec.id}.safetensors"

    def read(content: bytes) -> tuple[dict, dict, str]:
        return (
            safetensors.torch.load(content),
            _about(content),
            hashlib.sha256(content).hexdigest(),
        )

    if not (found := _intact(store, name, read, progress)):
        pin_init(spec, store)
        asked = spec
        if spec.search:  # whose checkpoint must know what was chosen: it may be chosen anew
            point = search.Searches(store, search.LAG_S).chosen(spec)
            asked = search.resolved(spec, point)
        content = _pretrained(spec, asked, store, here, progress)
        with contextlib.suppress(FileExistsError):  # another was first: others judge its encoder
            store.write(name, content, exclusive=True)
        if not (found := _intact(store, name, read, progress)):
            raise OSError(f"{store.root}/{name} was written and cannot be read: look at the disk")
        store.delete(_unfinished(spec, asked))
    state, about, sha256 = found
    encoder = backbones.build(spec.backbone, spec.image_size)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as misfit:
        if can_pass(misfit):
            raise
        raise ValueError(
            f"{name} is intact and does not fit {spec.backbone} as it is built here: it was made "
            f"with {about.get('encoder_versions')}, and here are {versions()}: install what it was "
            f"made with, or use another store"
        ) from misfit
    progress.curve = about.pop("curve")
    seen = about.pop("seen", [] if spec.method == NONE else [spec.dataset])
    for own in ("init", "learned", "search"):  # of the file, not of the rows
        about.pop(own, None)
    return Made(encoder, about, sha256[:12], tuple(seen))


def _pretrained(
    spec: EncoderSpec, asked: EncoderSpec, store: Store, here: Here, progress: Progress
) -> bytes:
    """The file of a freshly pretrained encoder."""
    chosen, found = {}, {}
    if asked is not spec:
        chosen = {axis: getattr(asked, axis) for axis in SEARCHED}
        found = {"search": search.told(search.Searches(store).standing(spec))}
        progress.say(f"{spec.search}: " + ", ".join(f"{k} {v:g}" for k, v in chosen.items()))
    file, labelled = _unfinished(spec, asked), spec.method == SUPERVISED
    checkpoint = _checkpoint(file, store, here, progress)
    images = datasets.load(spec.dataset, "train", spec.image_size, here.data)
    there = len(images)
    if 0 < spec.train_images < there:
        images = images.part(sample(there, spec.train_images, spec.seed))
    progress.publish("pretraining")
    start = _start(spec, store, here, progress)

    try:
        trained = (
            supervised.train(spec, here.data, here.device, checkpoint)
            if labelled
            else pretrain(
                asked,
                images,
                here.device,
                report=progress.epoch,
                checkpoint=checkpoint,
                start=start,
                spare=progress.spare,
            )
        )
    except NotFinite as why:
        store.delete(file)  # it may hold the loss that was not finite, and would again
        store.write(search.diverged(spec.id), str(why).encode())
        raise
    if spec.train_images > there:
        trained.notes.append(f"train_images cut to the {there} there are")
    where = device.describe(here.device)
    loaded = trained.loaded
    name = weights.pin(spec.backbone, spec.init)
    if name and (store.read(name) or b"").decode() != loaded.sha256:
        raise ValueError(f"the file of init {spec.init!r} was exchanged just as it was read: again")
    trained.notes += [f"init learned all labels of {dataset}" for dataset in loaded.learned]
    about = chosen | {
        "encoder_code": here.code,
        "encoder_device": where["device"],
        "encoder_precision": where["precision"],
        "encoder_versions": versions(),
        "dataset_md5": images.md5,
        "init_sha256": loaded.sha256,
        "init_left_random": ", ".join(loaded.left_random),
        "notes": "; ".join(trained.notes),
        "collapsed": monitor.collapsed(trained.curve),
        "pretrain_s": trained.seconds,
        "views_per_s": trained.views_per_s,
        **_of_gpu(trained.curve),
    }
    fitted = {
        "left random": loaded.left_random,
        "changed to fit": loaded.changed,
        "did not use": loaded.unused,
    }
    for what, names in fitted.items():
        if names:
            progress.say(f"init {spec.init} {what}: {', '.join(names)}")
    for note in trained.notes:
        progress.say(note)
    state = {k: v.cpu().contiguous() for k, v in trained.encoder.state_dict().items()}
    own = found | {
        "curve": trained.curve,
        "init": fitted,
        "learned": [*loaded.learned, *[spec.dataset] * labelled],
        "seen": [*dict.fromkeys([*loaded.seen, *[spec.dataset] * (spec.method != NONE)])],
    }
    header = {"medssl": json.dumps(about | own)}
    return safetensors.torch.save(state, header)


def _unfinished(spec: EncoderSpec, asked: EncoderSpec) -> str:
    """The checkpoint of an encoder, with what was chosen for it: two searches may choose the same
    at the same time, and neither may delete or put back what the other has."""
    return f"checkpoints/{spec.id}{f'-{asked.id}' * (asked is not spec)}.pt"


def _of_gpu(curve: list[dict[str, float]]) -> dict[str, float]:
    """How well it was used, and how full; of a CPU neither is known."""
    used = [epoch["mfu"] for epoch in curve if "mfu" in epoch]
    held = [epoch["peak_gib"] for epoch in curve if "peak_gib" in epoch]
    found = {"mfu": sum(used) / len(used)} if used else {}
    return found | ({"peak_gib": max(held)} if held else {})


def _checkpoint(name: str, store: Store, here: Here, progress: Progress) -> Checkpoint:
    return Checkpoint(
        load=lambda: _intact(store, name, _loadable, progress),
        save=lambda state: store.write(name, state),
        every_s=here.checkpoint_s,
        told=progress.step,
        leave=here.leave,
    )


def _start(spec: EncoderSpec, store: Store, here: Here, progress: Progress) -> bytes | None:
    """The file of the encoder that the spec's init names, made first where it is not there."""
    if above := parent(spec):
        curve = progress.curve
        encoder_of(above, store, here, progress)
        progress.curve = curve
        return store.read(f"encoders/{above.id}.safetensors")
    return store.read(name) if (name := weights.source(spec.init)) else None


def pin_init(spec: EncoderSpec, store: Store) -> None:
    """Remembers the file of the init, if it loads; ValueError where the store knows another."""
    if name := weights.pin(spec.backbone, spec.init):
        weights.ready(spec.backbone, spec.init)
        if not store.has(name):
            with contextlib.suppress(FileExistsError):  # another trial was first, with its file
                store.write(name, initial(spec).loaded.sha256.encode(), exclusive=True)
        _known(spec, store)


def _known(spec: EncoderSpec, store: Store) -> None:
    if problems := weights.changed(spec.backbone, spec.init, store.read):
        raise ValueError(problems[0])


def evaluate(
    cells: Sequence[Cell], made: Made, store: Store, here: Here, progress: Progress
) -> list[str]:
    """Rows of every cell; returns what went wrong, a sentence per cell that could not be done.

    An error that can pass is raised at the end, when the other cells are done; the device's is
    raised at once, for nothing on it works after one.
    """
    failed, passing, spec = [], None, cells[0].encoder
    md5s: dict[tuple[str, str], str] = {}
    kept_once: dict = {}

    def images(dataset: str, split: str) -> Images:
        found = datasets.load(dataset, split, spec.image_size, here.data)
        md5s[dataset, split] = found.md5
        return found

    load, tests = _features_once(made, spec, images, store, here, progress)
    leaks = cache(
        lambda target, source: _contamination(
            target, [source, *made.seen], spec.image_size, images, store, here
        )
    )

    def subject_of(cell: Cell) -> Judged:
        return Judged(
            lambda: made.encoder,
            load,
            cell.target,
            tests[cell.target, cell.source].task,
            cell.label_fraction,
            cell.subset_seed,
            cell.shots,
            images=images,
            device=here.device,
            seed=spec.seed,
            source=cell.source,
            alike=_learned(cell),
            made=kept_once,
            checkpoint=_checkpoint(fit_of(cell), store, here, progress),
        )

    def fit_of(cell: Cell) -> str:
        """The file of what a long evaluation has learned so far."""
        what = hashlib.sha256(repr((made.digest, _learned(cell))).encode()).hexdigest()[:12]
        return f"checkpoints/{spec.id}-{what}.pt"

    left = Counter(map(_learned, cells))
    begun: dict[str, Begun] = {}
    alike = dict.fromkeys(map(_learned, cells))
    for cell in sorted(cells, key=lambda cell: list(alike).index(_learned(cell))):
        progress.doing = ""
        progress.publish("evaluating", every_s=PUBLISH_S)
        if here.leave():
            raise Preempted("between two evaluations")
        began = time.perf_counter()
        try:
            target = load(cell.target, "test", cell.source)
            module, test = registry.load("evals", cell.eval), tests[cell.target, cell.source]
            if cell.id not in begun:
                subjects = {kin.id: subject_of(kin) for kin in _kin(cell, cells, module)}
                config, paused = module.Config(**dict(cell.settings)), time.perf_counter()
                begun |= _begin(module, subjects, config, progress)
                began += time.perf_counter() - paused  # all have their share of it
            subject, evaluated, share_s = begun.pop(cell.id)
            found = dict(evaluated)
            arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
            metrics = {k: v for k, v in found.items() if k not in arrays}
            arrays["target"] = target.t_NK.numpy().astype(np.uint8)
            seen = {
                "task": test.task,
                "target_md5": " ".join(md5s[read] for read in _read(cell) if read in md5s),
                "contamination": leaks(cell.target, cell.source),
                "scarce": subject.scarce,
                "labelled": subject.labelled,
                "code": here.code,
                "versions": versions(),
                "eval_s": share_s + time.perf_counter() - began + subject.checkpoint.earlier_s,
                "finished_at": datetime.now(UTC),
            }
            where = device.describe(here.device) if subject.live else test.where
            results.save(store, cell, metrics, arrays, made.about | where | seen)
            progress.cells_done += 1
            left[_learned(cell)] -= 1
            if not left[_learned(cell)]:
                store.delete(fit_of(cell))
        except (torch.AcceleratorError, Preempted):
            raise
        except Exception as error:
            progress.say("".join(traceback.format_exception(error)))
            if can_pass(error):
                passing = passing or error
            else:
                where = f"{cell.eval} on {cell.target} at {cell.labels}"
                failed.append(f"{where}: {type(error).__name__}: {error}")
    if passing:
        raise passing
    return failed


def _learned(cell: Cell) -> tuple:
    """What two cells of one encoder share if they differ in their target alone."""
    known = cell.label_fraction, cell.shots, cell.subset_seed
    return cell.eval, cell.settings, cell.source, *known


def _read(cell: Cell) -> list[tuple[str, str]]:
    """The splits by which a row names the files it read: test, but of a source that is no target's
    what is learned from."""
    source = cell.source if cell.source != cell.target else None
    return [(name, "train" if name == source else "test") for name in cell.datasets]


class Begun(NamedTuple):
    """The evaluation of a cell, of which some may be done."""

    subject: Judged
    found: Iterator
    share_s: float  # seconds, of what was done for several cells at once


def _kin(cell: Cell, cells: Sequence[Cell], module: ModuleType) -> list[Cell]:
    """The cells that differ from this one in their labelled images alone, where the evaluation can
    judge such together; else itself."""

    def asked(of: Cell) -> tuple:
        return of.eval, of.settings, of.source, of.target

    return [c for c in cells if asked(c) == asked(cell)] if hasattr(module, "together") else [cell]


def _begin(
    module: ModuleType, subjects: dict[str, Judged], config: object, progress: Progress
) -> dict[str, Begun]:
    """Of several subjects the evaluation together, or each alone where that fails."""

    def alone(subject: Judged) -> Iterator:
        yield from module.evaluate(subject, config)

    found, start = [alone(subject) for subject in subjects.values()], time.perf_counter()
    if len(subjects) > 1:
        try:
            found = module.together(list(subjects.values()), config)
        except (torch.AcceleratorError, Preempted):
            raise
        except Exception as error:
            progress.say(f"not together, each alone: {type(error).__name__}: {error}")
    share_s = (time.perf_counter() - start) / len(subjects)
    of_each = zip(subjects, subjects.values(), found, strict=True)
    return {cell: Begun(subject, evaluated, share_s) for cell, subject, evaluated in of_each}


class Test(NamedTuple):
    """Of the features of a test split: what its rows say."""

    task: str
    where: dict  # device, precision and threads that made the features


def _features_once(
    made: Made,
    spec: EncoderSpec,
    images: Callable[[str, str], Images],
    store: Store,
    here: Here,
    progress: Progress,
) -> tuple[Callable[..., Features], dict[tuple[str, str], Test]]:
    """(dataset, split, source) -> features of images that are normalised as the source's, extracted
    once, then from memory or the store; and, of every (dataset, source) whose test split was asked
    for, its `Test`.

    The file's name holds what the features depend on: images, whose normalisation, encoder file,
    and the code's version.
    """
    held: dict[tuple[str, str, str], Features] = {}
    tests: dict[tuple[str, str], Test] = {}

    @cache
    def like(source: str) -> tuple[str, np.ndarray, np.ndarray]:
        one = images(source, "test")
        return one.md5[:12], one.mean_DC, one.std_DC

    def load(dataset: str, split: str, source: str) -> Features:
        if (dataset, split, source) in held:
            return held[dataset, split, source]
        one = images(dataset, split)
        seen = f"{one.md5[:12]}-{split}"
        if source != dataset:
            md5, *statistics = like(source)
            seen, one = f"{seen}-as-{md5}", one.through(*statistics)
        name = f"{seen}-{made.digest}-v{Cell.eval_version}"
        name = f"features/{spec.id}/{name}.safetensors"

        def read(content: bytes) -> tuple[Tensor, dict]:
            return safetensors.torch.load(content)["x_ND"], _about(content)

        if not (kept := _intact(store, name, read, progress)):
            kept = features.extract(made.encoder, one, here.device), device.describe(here.device)
            header = {"medssl": json.dumps(kept[1])}
            store.write(name, safetensors.torch.save({"x_ND": kept[0]}, header))
        if split == "test":
            tests[dataset, source] = Test(one.task, kept[1])
        held[dataset, split, source] = Features(kept[0], torch.from_numpy(one.t_NK))
        return held[dataset, split, source]

    return load, tests


def _contamination(
    target: str,
    learned: list[str],
    size: int,
    images: Callable[[str, str], Images],
    store: Store,
    here: Here,
) -> str:
    """A sentence for each training split that was learned from and holds test images; counted once
    for a store. Validation, by which is chosen, is `medssl data audit`'s."""
    said, test = [], images(target, "test")
    for dataset in dict.fromkeys(learned):
        if datasets.check(dataset, size, here.data):  # the encoder is here, and its images are not
            said.append(f"{dataset}, which was learned from, is not here to be compared")
            continue
        train = images(dataset, "train")
        name = f"audits/{train.md5[:12]}-{test.md5[:12]}-v{audit.VERSION}.json"
        if (kept := store.read(name)) is None:
            kept = json.dumps(audit.overlap(train, test, here.device)).encode()
            store.write(name, kept)
        found = audit.Overlap(*json.loads(kept))
        if found.same + found.near:
            said.append(
                f"{found.same + found.near} of {found.images} test images of {target} have a twin "
                f"in the training split of {dataset}: {found.same} the same, {found.near} nearly"
            )
    return "; ".join(said)


def _intact(store: Store, name: str, read: Callable, progress: Progress):
    """What `read` makes of a file's content; None where it is absent, or broken and set aside."""
    content = store.read(name)
    try:
        return None if content is None else read(content)
    except Exception as broken:  # whatever a reader raises on bytes that are not its format
        if can_pass(broken):  # this process is short of memory: the file may be good
            raise
        progress.say(f"{name} cannot be read and was set aside ({type(broken).__name__}: {broken})")
        store.set_aside(name)
        return None


def _loadable(content: bytes) -> bytes:
    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return content


def versions() -> str:
    """Python's and the libraries' versions, as JSON."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return json.dumps(found)


def _about(content: bytes) -> dict:
    """What was written into the header of a safetensors file; ValueError where there is nothing."""
    if about := _layouts.header(content):
        return about
    raise ValueError("it has no header of medssl's")
