"""How long will it take? As long as the like of it took.

    rows of the store -> seconds of an image's pass, and of an evaluation -> of a sweep

An encoder's time is in proportion to its epochs and images, and no other rule is trusted: pace is
taken from encoders of the same method, backbone, size and views, else of another method, by what
the methods' files say that they cost; else there is none, and what is unknown is counted apart. A
store that has seen several devices is asked about the one it saw last.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from medssl import datasets, registry, results
from medssl.spec import NONE, SUPERVISED, Cell, EncoderSpec
from medssl.store import Store

INF = float("inf")
ASKED = "encoder", "method", "dataset", "backbone", "image_size", "views", "epochs", "train_images"
ASKED_CELL = "eval", "settings", "target", "label_fraction", "shots"
TOLD = "pretrain_s", "eval_s", "encoder_device", "device", "finished_at"


class Costs:
    """Seconds of encoders and cells, from what rows say of others."""

    def __init__(self, rows: Sequence[Mapping]):
        """`rows`: one of each cell."""
        rows = [row for row in rows if row["finished_at"] is not None]
        self.device = max(rows, key=lambda row: row["finished_at"])["device"] if rows else ""
        self._pace: dict[tuple, list[float]] = defaultdict(list)
        self._eval_s: dict[tuple, list[float]] = defaultdict(list)
        encoders = {row["encoder"]: row for row in rows if row["encoder_device"] == self.device}
        for row in encoders.values():
            done = _passes(row)
            if done and row["pretrain_s"]:
                for key in _kinds(row):
                    self._pace[key].append(row["pretrain_s"] / done / _per_view(row["method"], key))
        for row in rows:
            if row["device"] == self.device and row["eval_s"] is not None:
                for key in _asked(row):
                    self._eval_s[key].append(row["eval_s"])

    def encoder_s(self, spec: EncoderSpec) -> float | None:
        """Seconds of making it; None where nothing like it has been made."""
        if spec.method == NONE:
            return 0.0
        of = {name: getattr(spec, name, None) for name in ASKED}
        if not (passes := _passes(of)):
            return None
        for key in _kinds(of):
            if key in self._pace:
                return median(self._pace[key]) * passes * _per_view(spec.method, key)
        return None

    def cell_s(self, cell: Cell) -> float | None:
        """Seconds of judging it; None where nothing like it has been judged."""
        of = {name: getattr(cell, name) for name in ASKED_CELL}
        of |= {"backbone": cell.encoder.backbone, "image_size": cell.encoder.image_size}
        for key in _asked(of):
            if key in self._eval_s:
                return median(self._eval_s[key])
        return None


UNKNOWN = Costs(())


@dataclass(frozen=True)
class Estimate:
    """Of a whole sweep, or what is left of it."""

    known_s: float  # on one slot, one after another
    unknown: int  # encoders of which nothing is known
    unjudged: int  # cells of which nothing is known
    device: str

    def told(self, gpu: float, price: float | None) -> str:
        """A line for people; "" where nothing is known."""
        if not self.known_s:
            return ""
        by, unit = (gpu, "GPU-hours") if gpu else (1, "hours")
        text = f"about {_hours(self.known_s * by)} {unit} of {self.device}, by what this store has "
        text += "measured"
        if price is not None:
            text += f": {price * by * self.known_s / 3600:,.2f} at {price:g} an hour"
        left = [f"{self.unknown} encoders"] * bool(self.unknown)
        left += [f"{self.unjudged} cells"] * bool(self.unjudged)
        return text + (f"; without {' and '.join(left)}, of which it knows no like" if left else "")


def of_store(store: Store) -> Costs:
    """What the whole store has to say, whatever sweep it was for."""
    columns = dict.fromkeys(("cell", *ASKED, *ASKED_CELL, *TOLD))
    try:
        found = results.one_of_each(results.table(store).select(list(columns)))
    except results.Broken:  # it is told, and mended, elsewhere
        return UNKNOWN
    times = found["finished_at"].cast("int64")  # datetimes would import pandas
    rows = found.set_column(found.column_names.index("finished_at"), "finished_at", times)
    return Costs(rows.to_pylist())


def estimate(cells: Iterable[Cell], to_make: Iterable[EncoderSpec], costs: Costs) -> Estimate:
    """Of judging `cells` and making the encoders that they lack."""
    of_encoders = [costs.encoder_s(spec) for spec in to_make]
    of_cells = [costs.cell_s(cell) for cell in cells]
    known = [s for s in (*of_encoders, *of_cells) if s is not None]
    return Estimate(sum(known), of_encoders.count(None), of_cells.count(None), costs.device)


def weight(
    cells: Sequence[Cell], spec: EncoderSpec, lacks: bool, costs: Costs
) -> tuple[bool, float]:
    """Seconds of a trial, its encoder included where the store `lacks` it. False, and what is good
    enough to order trials by (epochs times images times pixels), where nothing is known."""
    parts = [costs.encoder_s(spec)] * lacks + [costs.cell_s(cell) for cell in cells]
    if None not in parts:
        return True, sum(parts)
    passes = (_passes({name: getattr(spec, name, None) for name in ASKED}) or 0) * lacks
    rough = 1e-8 * spec.image_size**2 * passes * _per_view(spec.method, ())
    return False, rough + sum(s or 0 for s in parts)


class Queue:
    """Which trial is next: the head of the longest chain of what waits for one another.

    A trial whose parent failed is never next. With a budget of slot-seconds, one that would exceed
    it is passed over, and one of unknown length is begun while any of it is left; `left` is what
    was not begun.
    """

    END = object()

    def __init__(
        self,
        seconds: Mapping[str, float],
        parents: Mapping[str, str],
        unknown: Collection[str] = (),
        budget_s: float = INF,
        now: Callable[[], float] = time.monotonic,
    ):
        self._parents, self._budget_s, self._now = parents, budget_s, now
        self._expected_s = dict(seconds) | dict.fromkeys(unknown, 0.0)
        children = defaultdict(list)
        for child, above in parents.items():
            children[above].append(child)

        def chain(id: str) -> float:
            return seconds[id] + max(map(chain, children[id]), default=0.0)

        self.left = sorted(seconds, key=chain, reverse=True)
        self._sure = seconds.keys() - set(unknown)
        self._began: dict[str, float] = {}
        self._unmade = set(seconds)  # those that failed stay in it
        self.spent_s = 0.0
        self._compared: list[tuple[float, float]] = []  # seconds it took, and that were expected

    def next(self):
        """The id of a trial; None while all wait for a parent that runs; END."""
        now, expected_s = self._now(), self._expected_s
        running_s = sum(max(expected_s[id], now - at) for id, at in self._began.items())
        free_s = self._budget_s - self.spent_s - running_s
        for place, id in enumerate(self.left):
            waits = self._parents.get(id) in self._unmade
            if not waits and max(expected_s[id], 1e-9) <= free_s:
                del self.left[place]
                self._began[id] = now
                return id
        return None if self._began and self.left else self.END

    def ended(self, id: str, ok: bool) -> None:
        took_s = self._now() - self._began.pop(id)
        self.spent_s += took_s
        if ok:
            self._unmade.remove(id)
        if ok and id in self._sure:
            self._compared.append((took_s, self._expected_s[id]))

    def told(self, gpu: float) -> str:
        """What was spent, and whether it was as expected."""
        by, unit = (gpu, "GPU-hours") if gpu else (1, "hours")
        text = f"{_hours(self.spent_s * by)} {unit} in trials"
        if self._compared:
            took_s, expected_s = map(sum, zip(*self._compared, strict=True))
            text += f"; {len(self._compared)} of them took {_hours(took_s * by)}, where "
            text += f"{_hours(expected_s * by)} were expected"
        return text


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def _passes(of: Mapping) -> float | None:
    """Images times epochs; None for a dataset whose size is unknown without its file."""
    images = datasets.about(of["dataset"]).images
    asked = of["train_images"] or images
    return None if images is None else (of["epochs"] or 1) * min(asked, images)


def _kinds(of: Mapping) -> list[tuple]:
    """Keys of what is like it, the most alike first."""
    own = of["backbone"], of["image_size"]
    if of["method"] == SUPERVISED:
        return [(SUPERVISED, *own)]
    return [(*own, of["method"], of["views"]), (*own, of["method"]), own]


def _per_view(method: str, key: tuple) -> float:
    """What an image's pass costs with a method, where `key` leaves the method open."""
    if len(key) > 2 or method in (NONE, SUPERVISED):
        return 1.0
    return registry.attribute("methods", method, "cost", 1.0)


def _asked(of: Mapping) -> list[tuple]:
    asked = of["settings"]  # JSON in a row
    settings = asked if isinstance(asked, str) else json.dumps(dict(asked))
    judged = of["eval"], of["backbone"], of["image_size"]
    known = of["label_fraction"], of["shots"]
    return [
        (*judged, settings, of["target"], *known),
        (*judged, settings, of["target"]),
        (*judged, settings),
        judged,
    ]
