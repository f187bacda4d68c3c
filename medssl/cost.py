"""How long will it take? As long as the like of it took.

    rows of the store -> seconds of an image's pass, and of an evaluation -> of a sweep

An encoder's time is in proportion to its epochs and images, and no other rule is trusted: pace is
taken from encoders of the same method, backbone, size and views, else of another method, by what
the methods' files say that they cost; an evaluation's from the same one of the same target. Else
there is none, and what is unknown is counted apart: so are supervised inits, which leave no rows. A
store that has seen several devices is asked about the one that it saw last.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from statistics import median
from typing import NamedTuple

from medssl import datasets, registry, results
from medssl.spec import NONE, SUPERVISED, Cell, EncoderSpec
from medssl.store import Store

INF = float("inf")
ASKED = "encoder", "method", "dataset", "backbone", "image_size", "views", "epochs", "train_images"
ASKED_CELL = "eval", "settings", "target", "source", "label_fraction", "shots"
TOLD = "pretrain_s", "eval_s", "encoder_device", "device", "finished_at", "notes"


class Costs:
    """Seconds of encoders and cells, from what rows say of others."""

    def __init__(self, rows: Sequence[Mapping]):
        """`rows`: one of each cell."""
        rows = [row for row in rows if row["finished_at"] is not None]
        rows.sort(key=itemgetter("finished_at"))
        judged = [row for row in rows if row["eval_s"] is not None]
        made = [
            row for row in rows if row["pretrain_s"] and "ended after" not in (row["notes"] or "")
        ]
        self.device = judged[-1]["device"] if judged else ""
        self.encoder_device = made[-1]["encoder_device"] if made else ""
        paces: dict[tuple, list[float]] = defaultdict(list)
        evals_s: dict[tuple, list[float]] = defaultdict(list)
        for row in {row["encoder"]: row for row in made}.values():
            if row["encoder_device"] == self.encoder_device and (passes := _passes(row)):
                for key in _kinds(row):
                    per_view = _per_view(row["method"], key)
                    paces[key].append(row["pretrain_s"] / passes / per_view)
        for row in judged:
            if row["device"] == self.device:
                for key in _asked(row):
                    evals_s[key].append(row["eval_s"])
        self._pace = {key: median(found) for key, found in paces.items()}
        self._eval_s = {key: median(found) for key, found in evals_s.items()}

    def encoder_s(self, spec: EncoderSpec) -> float | None:
        """Seconds of making it; None where nothing like it has been made."""
        if spec.method == NONE:
            return 0.0
        if spec.method == SUPERVISED:
            return None
        of = {name: getattr(spec, name, None) for name in ASKED}
        if not (passes := _passes(of)):
            return None
        for key in _kinds(of):
            if key in self._pace:
                return self._pace[key] * passes * _per_view(spec.method, key)
        return None

    def cell_s(self, cell: Cell) -> float | None:
        """Seconds of judging it; None where nothing like it has been judged."""
        of = {name: getattr(cell, name) for name in ASKED_CELL}
        of |= {"backbone": cell.encoder.backbone, "image_size": cell.encoder.image_size}
        for key in _asked(of):
            if key in self._eval_s:
                return self._eval_s[key]
        return None


UNKNOWN = Costs(())


@dataclass(frozen=True)
class Estimate:
    """Of a whole sweep, or what is left of it."""

    known_s: float  # one after another, each times its share of a GPU
    unknown: int  # encoders of which nothing is known
    unjudged: int  # cells of which nothing is known
    device: str

    def told(self, gpu: bool, price: float | None) -> str:
        """A line for people; "" where nothing is known."""
        if not self.known_s:
            return ""
        text = f"about {_time(self.known_s, gpu)} of {self.device}, by what this store has "
        text += "measured"
        if price is not None:
            text += f": {price * self.known_s / 3600:,.2f} at {price:g} an hour"
        counts = {"encoder": self.unknown, "cell": self.unjudged}
        left = [f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items() if count]
        return text + (f"; without {' and '.join(left)}, of which it knows no like" if left else "")


class Weight(NamedTuple):
    """Of a trial."""

    order_s: float  # to order trials by: rough, where not all is known
    known_s: float  # of what is known of it
    sure: bool  # that this is all of it


def of_store(store: Store) -> Costs:
    """What the store has to say, whatever sweep it was for."""
    found = results.history(store, (*ASKED, *ASKED_CELL, *TOLD))
    times = found["finished_at"].cast("int64")  # datetimes would import pandas
    rows = found.set_column(found.column_names.index("finished_at"), "finished_at", times)
    return Costs(rows.to_pylist())


def estimate(
    cells: Iterable[Cell],
    to_make: Iterable[EncoderSpec],
    costs: Costs,
    share: Callable[[EncoderSpec], float] = lambda spec: 1.0,
) -> Estimate:
    """Of judging `cells` and making the encoders that they lack, on a `share` of a GPU each."""
    of_encoders = [(spec, costs.encoder_s(spec)) for spec in to_make]
    of_cells, alike = [], {}
    for cell in cells:
        like = tuple(getattr(cell, name) for name in ASKED_CELL)
        like += cell.encoder.backbone, cell.encoder.image_size
        if like not in alike:
            alike[like] = costs.cell_s(cell)
        of_cells.append((cell.encoder, alike[like]))
    known = [s * share(spec) for spec, s in (*of_encoders, *of_cells) if s is not None]
    where = costs.encoder_device if any(s for _, s in of_encoders) else costs.device
    unknown, unjudged = (sum(s is None for _, s in of) for of in (of_encoders, of_cells))
    return Estimate(sum(known), unknown, unjudged, where)


def weight(cells: Sequence[Cell], spec: EncoderSpec, lacks: bool, costs: Costs) -> Weight:
    """Of judging the cells, and of making their encoder where the store `lacks` it.

    Where nothing is known, epochs times images times pixels order trials.
    """
    parts = [costs.encoder_s(spec)] * lacks + [costs.cell_s(cell) for cell in cells]
    known_s, sure = sum(s or 0.0 for s in parts), None not in parts
    if sure:
        return Weight(known_s, known_s, sure)
    passes = (_passes({name: getattr(spec, name, None) for name in ASKED}) or 0) * lacks
    rough_s = 1e-8 * spec.image_size**2 * passes * _per_view(spec.method, ())
    return Weight(rough_s + known_s, known_s, sure)


class Queue:
    """Which trial is next: the head of the longest chain of what waits for one another.

    One that waits for others comes after them; where one of those failed it is never next. Of a
    budget each takes its seconds times its share of a GPU: one of which enough is known to exceed
    it is passed over, and none is begun once it is spent; `left` is what was not.
    """

    END = object()

    def __init__(
        self,
        weights: Mapping[str, Weight],
        waits: Mapping[str, Collection[str]],  # for which others
        budget_s: float = INF,
        now: Callable[[], float] = time.monotonic,
        shares: Mapping[str, float] | None = None,  # of a GPU; 1 where there is none
    ):
        self._waits, self._budget_s, self._now = waits, budget_s, now
        self._weights, self._shares = weights, dict.fromkeys(weights, 1.0) | dict(shares or {})
        children = defaultdict(list)
        for child, several in waits.items():
            for above in several:
                children[above].append(child)

        @cache
        def chain(id: str) -> float:
            after = (chain(child) for child in children[id] if child in weights)
            return weights[id].order_s + max(after, default=0.0)

        self.left = sorted(weights, key=chain, reverse=True)
        self._began: dict[str, float] = {}  # when; INF until it has a slot
        self._unmade = set(weights)  # those that failed stay in it
        self.spent_s = 0.0
        self._compared: list[tuple[float, float]] = []  # seconds it took, and that were expected

    def next(self, fits: Callable[[str], bool] = lambda id: True):
        """The id of a trial; None while all wait for others that run, or for room; END.

        Nothing overtakes a trial that does not fit yet, or it would wait for all that are smaller.
        """
        now, weights, shares = self._now(), self._weights, self._shares
        running_s = sum(
            shares[id] * max(weights[id].known_s, now - at) for id, at in self._began.items()
        )
        free_s = self._budget_s - self.spent_s - running_s
        for place, id in enumerate(self.left):
            ready = self._unmade.isdisjoint(self._waits.get(id, ()))
            if ready and max(shares[id] * weights[id].known_s, 1e-9) <= free_s:
                if not fits(id):
                    return None
                del self.left[place]
                self._began[id] = INF
                return id
        return None if self._began and self.left else self.END

    def started(self, id: str) -> None:
        """It has a slot, for which it may have waited as long as a node takes to come."""
        self._began[id] = min(self._began[id], self._now())

    def ended(self, id: str, ok: bool) -> None:
        took_s = self._shares[id] * max(0.0, self._now() - self._began.pop(id))
        self.spent_s += took_s
        if ok:
            self._unmade.remove(id)
        if ok and self._weights[id].sure:
            self._compared.append((took_s, self._shares[id] * self._weights[id].known_s))

    def told(self, gpu: bool) -> str:
        """What was spent, and whether it was as expected."""
        text = f"{_time(self.spent_s, gpu)} in trials"
        if self._compared:
            took_s, expected_s = map(sum, zip(*self._compared, strict=True))
            text += f"; {len(self._compared)} of them took {_time(took_s, gpu)}, where "
            text += f"{_time(expected_s, gpu)} were expected"
        return text


def _time(seconds: float, gpu: bool) -> str:
    """90 -> "2 GPU-minutes", without a GPU "2 minutes"; rough on purpose."""
    unit, of = "GPU-" if gpu else "", seconds
    for name, each in (("seconds", 60), ("minutes", 60)):
        if of < 90:
            return f"{of:.0f} {unit}{name}"
        of /= each
    return (f"{of:.2g}" if of < 10 else f"{of:,.0f}") + f" {unit}hours"


def _passes(of: Mapping) -> float | None:
    """Images times epochs; None for a dataset whose size is unknown without its file."""
    images = datasets.about(of["dataset"]).images
    asked = of["train_images"] or images
    return None if images is None else (of["epochs"] or 1) * min(asked, images)


def _kinds(of: Mapping) -> list[tuple]:
    """Keys of what is like it, the most alike first."""
    own = of["backbone"], of["image_size"]
    return [(*own, of["method"], of["views"]), (*own, of["method"]), own]


def _per_view(method: str, key: tuple) -> float:
    """What an image's pass costs with a method, where `key` leaves the method open."""
    if len(key) > 2 or method in (NONE, SUPERVISED):
        return 1.0
    return registry.attribute("methods", method, "cost", 1.0)


def _asked(of: Mapping) -> list[tuple]:
    asked = of["settings"]  # JSON in a row
    settings = asked if isinstance(asked, str) else json.dumps(dict(asked))
    same = of["source"] in (None, of["target"])  # whose fit it does not share
    judged = of["eval"], settings, of["backbone"], of["image_size"], of["target"], same
    return [(*judged, of["label_fraction"], of["shots"]), judged]
