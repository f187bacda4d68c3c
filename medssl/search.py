"""Learning rate and weight decay, chosen on validation: which points are next, and which is best.

    rows of all points -> the better third of them, for longer -> ... -> the chosen one

A point is an encoder like any other, judged like any other, so what has been measured is kept,
shared with whoever asks for the same, and looked at as everything is. What is chosen is a function
of the store alone: whoever asks, after whatever was killed, gets the same answer, and nothing
depends on which point came first. A point whose loss diverged is the worst, and is not tried again.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from medssl import datasets, results
from medssl.spec import Cell, EncoderSpec
from medssl.store import Store

KEPT = 1 / 3  # of the points of a rung, for the next
SHARE = 1 / 3  # of the full grid's epochs, that halving may take

LAG_S = 60  # seconds after which a shared folder shows everywhere what a node has written

Point = tuple[float, float]  # learning rate, weight decay


class Rung(NamedTuple):
    points: int
    epochs: int  # of each


class Later(NamedTuple):
    """A trial of which is known that it will be, and not yet of which point."""

    spec: EncoderSpec  # for which is searched
    rung: int
    place: int  # after the rung before it: the best, the second, ...

    @property
    def id(self) -> str:
        return f"{base(self.spec).id}-rung{self.rung + 1}-{self.place + 1}"

    @property
    def like(self) -> list[Cell]:
        """Cells that take as long."""
        return cells(self.spec, self.spec.search.points[0], rungs(self.spec)[self.rung].epochs)


class Standing(NamedTuple):
    """How far a search is."""

    rungs: list[dict[Point, float]]  # those that are complete: their scores, the best first
    cells: dict[Point, list[Cell]]  # of the rung that is not; of none, once one point is left

    @property
    def chosen(self) -> Point | None:
        """None while it goes on, and where all diverged."""
        last = self.rungs[-1] if self.rungs else {}
        best, score = next(iter(last.items()), (None, -math.inf))
        return best if not self.cells and score > -math.inf else None


def rungs(spec: EncoderSpec) -> list[Rung]:
    """The full grid's one, or those of successive halving, which share SHARE of its epochs evenly
    (Jamieson and Talwalkar, https://arxiv.org/abs/1502.07943)."""
    search = spec.search
    epochs, counts = search.epochs or max(1, spec.epochs // 4), [len(search.points)]
    if search.how == "grid":
        return [Rung(*counts, epochs)]
    while (kept := math.ceil(counts[-1] * KEPT)) > 1:
        counts.append(kept)
    each = counts[0] * epochs * SHARE / len(counts)
    return [Rung(count, min(epochs, int(each / count + 1e-9))) for count in counts]


def wrong(spec: EncoderSpec) -> list[str]:
    """What no run could do."""
    first, *others = rungs(spec)
    if first.epochs:
        return []
    least = math.ceil((1 + len(others)) / SHARE)
    return [
        f"halving has no epoch for each of {first.points} points: give Search epochs={least} or "
        f"more, or fewer points"
    ]


def base(spec: EncoderSpec) -> EncoderSpec:
    """The encoder with the search's seed: what is chosen for it holds for every seed."""
    return replace(spec, seed=spec.search.seed)


def cells(spec: EncoderSpec, point: Point, epochs: int) -> list[Cell]:
    """What is measured of a point: one cell, or of a union one for each member."""
    rate, decay = point
    chosen = {"learning_rate": rate, "weight_decay": decay, "epochs": epochs, "search": None}
    encoder = replace(base(spec), **chosen)
    name, settings = spec.search.by
    judged = sorted(datasets.members(spec.dataset))
    return [Cell(encoder=encoder, eval=name, settings=settings, target=one) for one in judged]


def resolved(spec: EncoderSpec, point: Point) -> EncoderSpec:
    """The encoder with what was chosen."""
    return replace(spec, learning_rate=point[0], weight_decay=point[1], search=None)


def diverged(encoder: str) -> str:
    """The file that says of an encoder that its loss is not finite, whenever it is tried."""
    return f"diverged/{encoder}.txt"


class Searches:
    """What a store says of searches, as it was when this was made; scores are read once."""

    def __init__(self, store: Store, lag_s: float = 0):
        self._store, self._lag_s = store, lag_s
        self._scores: dict[str, float] = {}
        self.broken: set[str] = set()  # files of rows that cannot be read: as if not measured
        self._of: dict[str, Standing] = {}
        self.look()

    def look(self) -> None:
        """Looks for what has come since."""
        self._done = self._store.names("rows", ".parquet")
        self.diverged = self._store.names("diverged", ".txt")
        self._of = {id: found for id, found in self._of.items() if not found.cells}

    def standing(self, spec: EncoderSpec) -> Standing:
        id = base(spec).id
        if id not in self._of:
            self._of[id] = self._standing(spec)
        return self._of[id]

    def _standing(self, spec: EncoderSpec) -> Standing:
        points, complete = spec.search.points, []
        for count, epochs in rungs(spec):
            asked = {point: cells(spec, point, epochs) for point in points[:count]}
            known = all(map(self._measured, asked.values())) and self._read(asked.values(), spec)
            if not known:
                return Standing(complete, asked)
            scores = {point: self._score(of) for point, of in asked.items()}
            points = sorted(scores, key=scores.get, reverse=True)  # the grid's order where equal
            complete.append({point: scores[point] for point in points})
            points = [point for point in points if scores[point] > -math.inf]
        return Standing(complete, {})

    def so_far(self, spec: EncoderSpec) -> dict[Point, float]:
        """Scores of those points of the rung that is being measured which are."""
        asked = self.standing(spec).cells
        self._read(asked.values(), spec)
        return {point: self._score(of) for point, of in asked.items() if self._measured(of)}

    def known(self, spec: EncoderSpec) -> list[list[Cell]]:
        """The cells of each point of the complete rungs and of the one that is being measured."""
        standing = self.standing(spec)
        of_rungs = zip(rungs(spec), standing.rungs, strict=False)
        found = [cells(spec, point, of.epochs) for of, rung in of_rungs for point in rung]
        return found + list(standing.cells.values())

    def missing(self, spec: EncoderSpec) -> list[Cell]:
        """Of the rung that is being measured, what is not."""
        found = self.standing(spec).cells.values()
        return [c for of in found if not self._measured(of) for c in of if c.id not in self._done]

    def later(self, spec: EncoderSpec) -> list[Later]:
        """Of the rungs after that one."""
        standing, all_rungs = self.standing(spec), rungs(spec)
        begun = len(standing.rungs) + bool(standing.cells)
        return [
            Later(spec, at, place)
            for at in range(begun, len(all_rungs))
            for place in range(all_rungs[at].points * bool(standing.cells))
        ]

    def of_later(self, asked: Later) -> list[Cell]:
        """Its cells, once the rung before it is complete; none, where too few points are left.

        OSError where it is not: a shared folder may show a row of another node late.
        """
        standing = self._once(asked.spec, lambda found: len(found.rungs) >= asked.rung)
        before = [p for p, score in standing.rungs[asked.rung - 1].items() if score > -math.inf]
        if asked.place >= len(before):
            return []
        return cells(asked.spec, before[asked.place], rungs(asked.spec)[asked.rung].epochs)

    def chosen(self, spec: EncoderSpec) -> Point:
        """ValueError where nothing can be, OSError while it goes on."""
        if found := self._once(spec, lambda found: not found.cells).chosen:
            return found
        raise ValueError(
            f"no point of the search for it has a {spec.search.metric}: where their losses "
            f"diverged, name lower learning rates in Search"
        )

    def _once(self, spec: EncoderSpec, ready: Callable[[Standing], bool]) -> Standing:
        """Where it stands once it is `ready`, which is waited for as long as a store may lag."""
        until = time.monotonic() + self._lag_s
        while not ready(found := self.standing(spec)):
            if time.monotonic() >= until:
                if torn := sorted(self.broken):  # waiting mends it no more
                    raise ValueError(
                        f"{', '.join(torn)} of a point of the search for it cannot be read: run "
                        f"the sweep again, which sets it aside and measures it anew"
                    )
                raise OSError(
                    f"{len(self.missing(spec))} points of the search for it are not measured, or "
                    f"this node does not see them yet: run the sweep again"
                )
            time.sleep(1)
            self.look()
        return found

    def _measured(self, of: Iterable[Cell]) -> bool:
        return all(c.id in self._done or c.encoder.id in self.diverged for c in of)

    def _read(self, asked: Iterable[list[Cell]], spec: EncoderSpec) -> bool:
        """The scores of cells that are done; whether all their files could be read."""
        done = [c for of in asked for c in of if c.id in self._done and c.id not in self._scores]
        if not done:
            return True
        rows, broken = results.collected(self._store, done)
        self.broken |= broken.keys()
        self._done -= {Path(name).stem for name in broken}
        rows = results.only(rows, spec.search.metric)
        told = zip(rows["cell"].to_pylist(), rows["value"].to_pylist(), strict=True)
        found = {cell: value for cell, value in told if not math.isnan(value)}
        self._scores |= {c.id: found.get(c.id, -math.inf) for c in done if c.id in self._done}
        return not broken

    def _score(self, of: list[Cell]) -> float:
        """The mean over the cells; -inf where one has none."""
        lacks = any(cell.encoder.id in self.diverged for cell in of)
        return -math.inf if lacks else sum(self._scores[cell.id] for cell in of) / len(of)


def told(standing: Standing) -> list[dict]:
    """The complete rungs as JSON has them: a line for each point, its score None where it
    diverged."""
    return [
        {
            "rung": at,
            "learning_rate": rate,
            "weight_decay": decay,
            "score": score if score > -math.inf else None,
        }
        for at, rung in enumerate(standing.rungs, start=1)
        for (rate, decay), score in rung.items()
    ]


def set_aside_broken(specs: Iterable[EncoderSpec], store: Store) -> list[str]:
    """Renames row files of their points that cannot be read, so that they are missing; their
    names."""
    searches = Searches(store)
    for spec in asked(specs, ()):
        searches.standing(spec)
    for name in searches.broken:
        store.set_aside(name)
    return sorted(searches.broken)


def asked(specs: Iterable[EncoderSpec], made: Collection[str]) -> list[EncoderSpec]:
    """One of each search that the encoders, as far as they are not `made`, wait for."""
    each = {spec.id: spec for spec in specs if spec.search}.values()
    return list({base(spec).id: spec for spec in each if spec.id not in made}.values())


def waits(spec: EncoderSpec, searches: Searches) -> dict[str, set[str]]:
    """Which of its later trials wait for which others, those of a rung for all of the one before;
    under the id of its `base` what the encoders themselves wait for."""
    before, found = {cell.encoder.id for cell in searches.missing(spec)}, {}
    for _, rung in groupby(searches.later(spec), attrgetter("rung")):
        ids = {one.id for one in rung}
        found |= dict.fromkeys(ids, before)
        before = ids
    return found | {base(spec).id: before}
