"""How far a sweep is, read from the store alone: so it works from another terminal or machine.

progress/ENCODER.json (written by each trial) + encoders/ + rows/ (what is done) -> Status
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice

from medssl import search
from medssl.spec import Cell, EncoderSpec, parent
from medssl.store import Store

RUNNING = "starting", "pretraining", "evaluating"
SILENT_S = 300  # a trial that has published nothing for so long is taken for lost
LIKE = 20  # trials, of those that are like one, whose epochs say how long its own will take


@dataclass
class Trial:
    """One encoder: its spec, what its progress file says, and how many of its cells are done."""

    spec: EncoderSpec
    cells: list[Cell]
    done: int = 0
    made: bool = False  # its encoder is in the store, after however many epochs
    diverged: bool = False  # a point of a search, which it leaves by that
    read: Callable[[], dict] = dict

    @cached_property
    def said(self) -> dict:
        """What is in progress/ID.json, read when it is first asked for: few finished ones are."""
        return self.read()

    @property
    def curve(self) -> list[dict[str, float]]:
        """What was logged, an entry per pretrained epoch."""
        return self.said.get("curve", [])

    @property
    def state(self) -> str:
        """finished | failed | diverged | starting | pretraining | evaluating | waiting"""
        if self.diverged:
            return "diverged"
        if self.done == len(self.cells) and (self.cells or self.made):
            return "finished"
        state = self.said.get("state", "waiting")
        if state not in (
            *RUNNING,
            "failed",
        ):  # finished, of fewer cells than are asked for now, ...
            return "waiting"
        silent = time.time() - self.said.get("updated", 0) > SILENT_S
        return "waiting" if silent and state != "failed" else state


@dataclass
class Status:
    """A sweep at one moment."""

    trials: list[Trial]
    parents: list[Trial] = field(default_factory=list)  # supervised inits, made first; of no cells
    points: list[Trial] = field(default_factory=list)  # of searches, as far as it is known which
    later: int = 0  # points of which it is not

    @property
    def cells(self) -> int:
        return sum(len(t.cells) for t in self.trials)

    @property
    def cells_done(self) -> int:
        return sum(t.done for t in self.trials)

    @property
    def states(self) -> Counter:
        return Counter(t.state for t in self.trials)

    def of(self, *states: str) -> list[Trial]:
        return [t for t in self.trials if t.state in states]

    def eta_s(self) -> float | None:
        """Seconds of pretraining left: epochs to go, each as long as such epochs took.

        None before one is done, and when none is to go. Evaluations are not in it, and fine-tuning
        may take longer: whoever shows the number must say so.
        """
        left = [t for t in self.trials if not t.made and t.state not in ("finished", "failed")]
        to_go = [(t, t.spec.epochs - len(t.curve)) for t in left if t.spec.epochs > len(t.curve)]
        pace = _Pace(self.trials)
        found = [(epochs, pace.epoch_s(t)) for t, epochs in to_go]
        if not found or any(seconds is None for _, seconds in found):
            return None
        work = sum(epochs * seconds for epochs, seconds in found)
        return work / max(1, len(self.of(*RUNNING)))


def read(cells: Sequence[Cell], store: Store) -> Status:
    """The state of every encoder of the cells."""
    return Reader(cells, store).read()


class Reader:
    """Reads the state of the same cells again and again, and opens only what has changed since."""

    def __init__(self, cells: Sequence[Cell], store: Store):
        self._store, self._cells, self._searches = store, {}, None
        for cell in cells:
            self._cells.setdefault(cell.encoder.id, []).append(cell)
        self._said: dict[
            str, tuple[str, dict]
        ] = {}  # with the stamp of the file that it was read of

    def read(self) -> Status:
        store = self._store
        done = store.names("rows", ".parquet")
        spoke = store.stamps("progress", ".json")
        made = store.names("encoders", ".safetensors")
        trials = {id: Trial(cells[0].encoder, cells) for id, cells in self._cells.items()}
        above = [parent(t.spec) for id, t in trials.items() if id not in made]
        parents = {spec.id: Trial(spec, []) for spec in above if spec}
        points, later = self._points([t.spec for t in trials.values()], made)
        for id, trial in [*trials.items(), *parents.items(), *points.items()]:
            trial.made = id in made
            trial.done = sum(cell.id in done for cell in trial.cells)
            if id in spoke:
                trial.read = partial(self._latest, id, spoke[id])
            trial.diverged = id in points and id in self._searches.diverged
        return Status(*(list(of.values()) for of in (trials, parents, points)), later)

    def _points(self, specs: list[EncoderSpec], made: set[str]) -> tuple[dict[str, Trial], int]:
        """Of searches for these encoders those points that are measured, or can be; and how many
        more there will be."""
        points, later = {}, 0
        if searched := [spec for spec in specs if spec.search]:
            if self._searches:
                self._searches.look()
            else:
                self._searches = search.Searches(self._store)
        for spec in search.asked(searched, ()):
            for cells in self._searches.known(spec):
                if (id := cells[0].encoder.id) not in self._cells:  # else it is one of its own
                    points[id] = Trial(cells[0].encoder, cells)
            later += len(self._searches.later(spec)) * (spec.id not in made)
        return points, later

    def _latest(self, id: str, stamp: str) -> dict:
        if self._said.get(id, ("",))[0] != stamp:
            with contextlib.suppress(OSError, ValueError):  # a view; the next reading may succeed
                said = json.loads(self._store.read(f"progress/{id}.json") or b"{}")
                self._said[id] = stamp, said
        return self._said.get(id, ("", {}))[1]


def stop(status: Status, store: Store) -> None:
    """Says of the trials that seem to run that they do not, once their driver has ended."""
    making = [t for t in status.parents + status.points if t.state in RUNNING]
    for trial in [*making, *status.of(*RUNNING)]:
        said = trial.said | {"state": "stopped", "updated": time.time()}
        store.write(f"progress/{trial.spec.id}.json", json.dumps(said).encode())


class _Pace:
    """Seconds of one epoch: of a trial, else of those like it, else of any."""

    def __init__(self, trials: list[Trial]):
        self._began = [t for t in reversed(trials) if t.state != "waiting"]
        self._known: dict[tuple, float | None] = {}

    def epoch_s(self, trial: Trial) -> float | None:
        of = trial.spec
        alike = (of.dataset, of.backbone, of.method), (of.dataset, of.backbone), ()
        return _mean_s([trial]) or next(filter(None, map(self._like, alike)), None)

    def _like(self, key: tuple) -> float | None:
        if key not in self._known:
            group = (
                t
                for t in self._began
                if (t.spec.dataset, t.spec.backbone, t.spec.method)[: len(key)] == key and t.curve
            )
            self._known[key] = _mean_s(islice(group, LIKE))
        return self._known[key]


def _mean_s(trials: Iterable[Trial]) -> float | None:
    seconds = [epoch["seconds"] for t in trials for epoch in t.curve]
    return sum(seconds) / len(seconds) if seconds else None
