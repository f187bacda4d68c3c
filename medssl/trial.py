"""One trial: all missing cells of one encoder, from images to rows. Knows no cluster, no tracker.

    cells -> encoder (from the store, or pretrained) -> features per target and split -> rows

Whatever finishes is in the store at once, so a trial that dies loses at most the checkpoint
interval, and one that is run again does only what is missing. What it is doing is in
`progress/ENCODER.json`, the one thing that the live display, `medssl status` and MLflow read.
"""

import importlib.metadata
import io
import json
import os
import platform
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from medssl import backbones, datasets, device, monitor, registry, results, weights
from medssl.evals import Features
from medssl.features import Judged, extract
from medssl.pretrain import Checkpoint, Pretrained, pretrain
from medssl.spec import Cell, EncoderSpec
from medssl.store import Store
from medssl.weights import Loaded

PASSING = (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)  # worth a retry
LIBRARIES = ("torch", "timm", "numpy", "scikit-learn", "medmnist", "ray")
PUBLISH_S = 2  # seconds between two writes of the progress file


class CellsFailed(RuntimeError):
    """Some cells of the encoder could not be evaluated; the others are in the store."""


@dataclass(frozen=True)
class Here:
    """Where this trial runs; nothing of it is in an id."""

    device: torch.device
    data: Path | None = None  # folder of dataset files
    code: str = "unknown"  # version and commit, for the rows
    checkpoint_s: float = 120  # seconds


def run(cells: Sequence[Cell], store: Store, here: Here) -> None:
    """Measures the cells, which share one encoder; raises what went wrong after recording it."""
    spec = cells[0].encoder
    progress = Progress(store, spec, len(cells))
    try:
        trained, about = encoder_of(spec, store, here, progress)
        failed = evaluate(cells, trained, about, store, here, progress)
        if failed:
            raise CellsFailed("; ".join(failed))
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
    started: float = field(default_factory=time.time)  # seconds since 1970
    _at: float = 0.0
    _log: str = ""

    def __post_init__(self):
        old = self.store.read(f"logs/{self.spec.id}.log") or b""
        self._log = old.decode(errors="replace")
        self.say(f"{self.spec.method} on {self.spec.dataset}, {self.spec.backbone}, {self.spec.id}")

    def say(self, line: str) -> None:
        self._log += f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n"

    def epoch(self, curve: list[dict[str, float]]) -> None:
        self.curve = curve
        self.say(f"epoch {len(curve)}: " + " ".join(f"{k}={v:.4g}" for k, v in curve[-1].items()))
        self.publish("pretraining", every_s=PUBLISH_S)

    def fail(self, error: Exception) -> None:
        self.say("".join(traceback.format_exception(error)))
        self.publish("failed", reason=f"{type(error).__name__}: {error}")

    def publish(self, state: str, reason: str = "", every_s: float = 0) -> None:
        """pretraining | evaluating | finished | failed; at most once in `every_s` seconds."""
        if time.monotonic() - self._at < every_s:
            return
        self._at = time.monotonic()
        content = {
            "encoder": self.spec.id,
            "state": state,
            "reason": reason,
            "epochs": self.spec.epochs,
            "cells": self.cells,
            "cells_done": self.cells_done,
            "started": self.started,
            "updated": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "curve": self.curve,
        }
        self.store.write(f"logs/{self.spec.id}.log", self._log.encode())
        self.store.write(f"progress/{self.spec.id}.json", json.dumps(content).encode())


def encoder_of(
    spec: EncoderSpec, store: Store, here: Here, progress: Progress
) -> tuple[Pretrained, dict]:
    """The encoder and what its rows say of it: from the store, else pretrained and put there."""
    name, checkpoint = f"encoders/{spec.id}.safetensors", f"checkpoints/{spec.id}.pt"
    if kept := _intact(store, name, lambda c: (_about(c), safetensors.torch.load(c)), progress):
        about, state = kept
        encoder = backbones.build(spec.backbone, spec.image_size)
        encoder.load_state_dict(state)
        progress.curve = about.pop("curve")
        about.pop("init", None)
        return Pretrained(encoder, Loaded()), about
    pin_init(spec.init, store)
    images = datasets.load(spec.dataset, "train", spec.image_size, here.data)
    progress.publish("pretraining")

    def save(state: bytes) -> None:
        store.write(checkpoint, state)
        progress.publish("pretraining")  # a sign of life within long epochs

    trained = pretrain(
        spec,
        images,
        here.device,
        report=progress.epoch,
        checkpoint=Checkpoint(
            load=lambda: _intact(store, checkpoint, _loadable, progress),
            save=save,
            every_s=here.checkpoint_s,
        ),
    )
    progress.curve = trained.curve
    where = device.describe(here.device)
    about = {
        "encoder_code": here.code,
        "encoder_device": where["device"],
        "encoder_precision": where["precision"],
        "encoder_versions": versions(),
        "dataset_md5": images.md5,
        "init_sha256": trained.loaded.sha256,
        "init_left_random": ", ".join(trained.loaded.left_random),
        "notes": "; ".join(trained.notes),
        "collapsed": monitor.collapsed(trained.curve),
        "pretrain_s": trained.seconds,
        "views_per_s": trained.views_per_s,
    }
    fitted = {
        "left random": trained.loaded.left_random,
        "changed to fit": trained.loaded.changed,
        "did not use": trained.loaded.unused,
    }
    for what, names in fitted.items():
        if names:
            progress.say(f"init {spec.init} {what}: {', '.join(names)}")
    for note in trained.notes:
        progress.say(note)
    state = {k: v.cpu().contiguous() for k, v in trained.encoder.state_dict().items()}
    header = {"medssl": json.dumps(about | {"curve": trained.curve, "init": fitted})}
    store.write(name, safetensors.torch.save(state, header))
    store.delete(checkpoint)
    return trained, about


def pin_init(init: str, store: Store) -> None:
    """Remembers the file of a `file:` init; ValueError where the store knows another by it."""
    if (name := weights.pin(init)) and (sha256 := weights.digest(init)):
        if problems := weights.changed(init, store.read(name)):
            raise ValueError(problems[0])
        store.write(name, sha256.encode())


def evaluate(
    cells: Sequence[Cell],
    trained: Pretrained,
    about: dict,
    store: Store,
    here: Here,
    progress: Progress,
) -> list[str]:
    """Rows of every cell; returns what went wrong, a sentence per cell that could not be done."""
    failed, tested = [], {}
    load = _features_once(trained, cells[0].encoder, store, here, progress, tested)
    about = about | device.describe(here.device) | {"code": here.code, "versions": versions()}
    for cell in cells:
        progress.publish("evaluating", every_s=PUBLISH_S)
        began = time.perf_counter()
        try:
            target = load(cell.target, "test")
            module = registry.load("evals", cell.eval)
            task, md5 = tested[cell.target]
            subject = Judged(
                lambda: trained.encoder,
                load,
                cell.target,
                task,
                cell.label_fraction,
                cell.subset_seed,
            )
            found = dict(module.evaluate(subject, module.Config(**dict(cell.settings))))
            arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
            metrics = {k: v for k, v in found.items() if k not in arrays}
            arrays["target"] = target.t_NK.numpy().astype(np.uint8)
            seen = {
                "target_md5": md5,
                "eval_s": time.perf_counter() - began,
                "finished_at": datetime.now(UTC),
            }
            results.save(store, cell, metrics, arrays, about | seen)
            progress.cells_done += 1
        except PASSING:  # the disk or the memory, not the cell: worth a retry of the trial
            raise
        except Exception as error:
            where = f"{cell.eval} on {cell.target} at {cell.label_fraction:g}"
            failed.append(f"{where}: {type(error).__name__}: {error}")
            progress.say("".join(traceback.format_exception(error)))
    return failed


def _features_once(
    trained: Pretrained,
    spec: EncoderSpec,
    store: Store,
    here: Here,
    progress: Progress,
    tested: dict,
) -> Callable[[str, str], Features]:
    """(dataset, split) -> features; extracted once, then from memory or the store.

    Puts the task and the MD5 of every test split into `tested`.
    """
    held: dict[tuple[str, str], Features] = {}

    def load(dataset: str, split: str) -> Features:
        if (dataset, split) not in held:
            one = datasets.load(dataset, split, spec.image_size, here.data)
            if split == "test":
                tested[dataset] = (one.task, one.md5)
            name = f"features/{spec.id}/{one.md5[:12]}-{split}.safetensors"
            x_ND = _intact(store, name, lambda c: safetensors.torch.load(c)["x_ND"], progress)
            if x_ND is None:
                x_ND = extract(trained.encoder, one, here.device)
                store.write(name, safetensors.torch.save({"x_ND": x_ND}))
            held[dataset, split] = Features(x_ND, torch.from_numpy(one.t_NK))
        return held[dataset, split]

    return load


def _intact(store: Store, name: str, read: Callable, progress: Progress):
    """What `read` makes of a file's content; None where it is absent, or broken and set aside."""
    content = store.read(name)
    try:
        return None if content is None else read(content)
    except Exception as broken:  # whatever a reader raises on bytes that are not its format
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
    """What `encoder_of` wrote into the header of a safetensors file."""
    file = io.BytesIO(content)
    size = int.from_bytes(file.read(8), "little")
    return json.loads(json.loads(file.read(size))["__metadata__"]["medssl"])
