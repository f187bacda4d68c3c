"""How far a sweep is, read from the store alone: so it works from another terminal or machine.

progress/ENCODER.json (written by each trial) + rows/ (what is done) -> Status
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from medssl.spec import Cell, EncoderSpec
from medssl.store import Store

SILENT_S = 600  # a trial that has published nothing for so long is taken for lost


@dataclass
class Trial:
    """One encoder: its spec, what its progress file says, and how many of its cells are done."""

    spec: EncoderSpec
    cells: list[Cell]
    done: int = 0
    said: dict = field(default_factory=dict)  # progress/ID.json

    @property
    def state(self) -> str:
        """finished | failed | pretraining | evaluating | waiting"""
        if self.done == len(self.cells):
            return "finished"
        state = self.said.get("state", "waiting")
        if state == "finished":  # of fewer cells than are asked for now
            return "waiting"
        silent = time.time() - self.said.get("updated", 0) > SILENT_S
        return "waiting" if silent and state != "failed" else state


@dataclass
class Status:
    """A sweep at one moment."""

    trials: list[Trial]

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

    def eta_s(self, since: float, done_then: float) -> float | None:
        """Seconds left at the pace since then, in shares of trials; None before there is a pace."""
        gained = self.share - done_then
        return (1 - self.share) * (time.time() - since) / gained if gained > 0 else None

    @property
    def share(self) -> float:
        """Of the work, in [0, 1]: a pretrained epoch counts like its share of the trial."""
        return sum(map(_share, self.trials)) / max(len(self.trials), 1)


def read(cells: Sequence[Cell], store: Store, finished: dict | None = None) -> Status:
    """The state of every encoder; `finished` remembers, between calls, those that need no look."""
    trials: dict[str, Trial] = {}
    for cell in cells:
        trials.setdefault(cell.encoder.id, Trial(cell.encoder, [])).cells.append(cell)
    done = store.names("rows", ".parquet")
    spoke = store.names("progress", ".json")
    for id, trial in trials.items():
        trial.done = sum(cell.id in done for cell in trial.cells)
        if id in spoke and not (finished and id in finished):
            trial.said = json.loads(store.read(f"progress/{id}.json") or b"{}")
        elif finished and id in finished:
            trial.said = finished[id]
        if finished is not None and trial.state == "finished":
            finished[id] = trial.said
    return Status(list(trials.values()))


def _share(trial: Trial) -> float:
    if trial.state in ("finished", "failed"):
        return 1.0
    pretrained = len(trial.said.get("curve", ())) / max(trial.spec.epochs, 1)
    return 0.9 * pretrained + 0.1 * trial.done / len(trial.cells)
