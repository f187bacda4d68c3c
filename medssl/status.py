"""How far a sweep is, read from the store alone: so it works from another terminal or machine.

progress/ENCODER.json (written by each trial) + encoders/ + rows/ (what is done) -> Status
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from medssl.spec import Cell, EncoderSpec, parent
from medssl.store import Store

SILENT_S = 300  # a trial that has published nothing for so long is taken for lost


@dataclass
class Trial:
    """One encoder: its spec, what its progress file says, and how many of its cells are done."""

    spec: EncoderSpec
    cells: list[Cell]
    done: int = 0
    made: bool = False  # its encoder is in the store, after however many epochs
    said: dict = field(default_factory=dict)  # progress/ID.json

    @property
    def curve(self) -> list[dict[str, float]]:
        """What was logged, an entry per pretrained epoch."""
        return self.said.get("curve", [])

    @property
    def state(self) -> str:
        """finished | failed | pretraining | evaluating | waiting"""
        if self.done == len(self.cells) and (self.cells or self.made):
            return "finished"
        state = self.said.get("state", "waiting")
        if state in ("finished", "stopped"):  # of fewer cells than are asked for now; by Ctrl-C
            return "waiting"
        silent = time.time() - self.said.get("updated", 0) > SILENT_S
        return "waiting" if silent and state != "failed" else state


@dataclass
class Status:
    """A sweep at one moment."""

    trials: list[Trial]
    parents: list[Trial] = field(default_factory=list)  # supervised inits, made first; of no cells

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
        pace = [(t, _epoch_s(t, self.trials)) for t, _ in to_go]
        if not to_go or any(seconds is None for _, seconds in pace):
            return None
        work = sum(n * s for (_, n), (_, s) in zip(to_go, pace, strict=True))
        return work / max(1, len(self.of("pretraining", "evaluating")))


def read(cells: Sequence[Cell], store: Store) -> Status:
    """The state of every encoder of the cells."""
    trials: dict[str, Trial] = {}
    for cell in cells:
        trials.setdefault(cell.encoder.id, Trial(cell.encoder, [])).cells.append(cell)
    done = store.names("rows", ".parquet")
    spoke = store.names("progress", ".json")
    made = store.names("encoders", ".safetensors")
    above = [parent(t.spec) for id, t in trials.items() if id not in made]
    parents = {spec.id: Trial(spec, []) for spec in above if spec}
    for id, trial in (trials | parents).items():
        trial.made = id in made
        trial.done = sum(cell.id in done for cell in trial.cells)
        if id in spoke:
            with contextlib.suppress(OSError, ValueError):  # a view; the next reading may succeed
                trial.said = json.loads(store.read(f"progress/{id}.json") or b"{}")
    return Status(list(trials.values()), list(parents.values()))


def stop(status: Status, store: Store) -> None:
    """Says of the trials that seem to run that they do not, once their driver has ended."""
    making = [t for t in status.parents if t.state == "pretraining"]
    for trial in [*making, *status.of("pretraining", "evaluating")]:
        said = trial.said | {"state": "stopped", "updated": time.time()}
        store.write(f"progress/{trial.spec.id}.json", json.dumps(said).encode())


def _epoch_s(trial: Trial, trials: list[Trial]) -> float | None:
    """Seconds of one epoch: of this trial, else of those like it, else of any."""
    alike = ("dataset", "backbone", "method"), ("dataset", "backbone"), ()
    groups = [[trial]] + [
        [t for t in trials if all(getattr(t.spec, f) == getattr(trial.spec, f) for f in fields)]
        for fields in alike
    ]
    for group in groups:
        seconds = [epoch["seconds"] for t in group for epoch in t.curve]
        if seconds:
            return sum(seconds) / len(seconds)
    return None
