"""Is the difference in a table more than the luck of its test images? Intervals, p, ranks.

    stored predictions -> resamples shared by all cells of a test set -> tables beside the numbers

± and [] answer two questions, and neither holds the other: ± is what another pretraining seed does
on the same test images, [] what other test images do to the mean of the same encoders. Two
intervals that overlap say little of a difference, which is paired and so has a table of its own.
No encoder, image or GPU is needed. A number is given an interval only if its predictions give back
the number itself; what has none is in the notes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import stdev
from string import ascii_lowercase

import numpy as np

from medssl import stats
from medssl.report import tables
from medssl.report.tables import RECIPE, Grid, Known, Summary
from medssl.spec import NONE

START = "target", "source", "dataset", "backbone", "init", "image_size"  # shared with the baseline
ALPHA = 0.05
OTHERS = (
    "the predictions that were kept, scored again, give another number than the table has: the two "
    "are of different runs; delete rows/CELL.parquet in the store and run the sweep again"
)
Place = tuple[tuple[str, ...], Known]  # of a number in its table

# N test images, K classes, R the test set and its resamples, M lines, D targets


@dataclass
class Resampled:
    """A number of a table, and what it is on each resample of its test set."""

    v_R: np.ndarray
    test_set: tuple[str, str]  # target and a digest of its labels: what can be paired


def summaries(
    rows: Iterable[dict],
    metric: str,
    predictions: Callable[[str], Mapping[str, np.ndarray]],
    count: int = 1000,
    against: str | None = None,
) -> tuple[list[Summary], list[str]]:
    """`tables.summaries` with intervals, each followed by differences and ranks; and notes.

    `predictions` gives a cell's target (N, K) and scores (N, K) by its id, or raises ValueError or
    OSError. `against` is the method of the baselines, none if there is one. ValueError for a metric
    that is not of predictions, and for a baseline that is not in the table.
    """
    if metric not in stats.METRICS:
        raise ValueError(
            f"no intervals of {metric!r}: kept predictions of test images give "
            f"{', '.join(stats.METRICS)}"
        )
    rows = list(rows)
    methods = sorted({row["method"] for row in rows})
    if against is not None and against not in methods:
        raise ValueError(f"no {against!r} to compare with: choose from {', '.join(methods)}")
    found, told, read = [], {}, Predictions(predictions, metric, count)
    for grid in tables.grids(rows, metric):
        numbers = {
            (line, known): number
            for line, of_line in grid.lines.items()
            for known, of_number in of_line.items()
            if (number := read.number(of_number))
        }
        found.append(_with_intervals(grid, numbers, count))
        found += _differences(grid, numbers, against or NONE, count, told)
        found += _ranks(grid)
    return found, [*told, *read.notes()]


class Predictions:
    """The resampled numbers of cells, and why there are none."""

    def __init__(self, predictions: Callable, metric: str, count: int):
        self.predictions, self.metric = predictions, metric
        self.absent: dict[str, set[str]] = defaultdict(set)
        self.counts = lru_cache(2)(lambda n: stats.resamples(n, count))  # rows come by target

    def number(self, rows: list[dict]) -> Resampled | None:
        """The mean over seeds of the mean over subset seeds, as in the table; None if one lacks."""
        cells = {row["cell"]: self._cell(row) for row in rows}
        if None in cells.values():
            return None
        if len(test_sets := {cell.test_set for cell in cells.values()}) > 1:
            self.absent["the seeds of a number have other test images"] |= cells.keys()
            return None
        v_R = np.mean(
            [
                np.mean([cells[row["cell"]].v_R for row in of_seed], axis=0)
                for of_seed in tables.by_seed(rows).values()
            ],
            axis=0,
        )
        return Resampled(v_R, test_sets.pop())

    def _cell(self, row: dict) -> Resampled | None:
        try:
            kept = self.predictions(row["cell"])
            t_NK, heads = kept["target"], [kept["scores"]]
        except (ValueError, OSError, KeyError):
            self.absent["predictions are missing or cannot be read"].add(row["cell"])
            return None
        if not row["task"]:
            self.absent["a row of an earlier version does not say its task"].add(row["cell"])
            return None
        heads += [more for name, more in kept.items() if name.startswith("scores_head_")]
        counts_NR = self.counts(len(t_NK))
        of_each = [stats.score(s, t_NK, row["task"], self.metric, counts_NR) for s in heads]
        v_R = np.mean(of_each, axis=0)  # of several heads on one encoder, as their rows have it
        if abs(v_R[0] - row["value"]) > 1e-9:
            self.absent[OTHERS].add(row["cell"])
            return None
        digest = hashlib.sha256(np.ascontiguousarray(t_NK)).hexdigest()
        return Resampled(v_R, (row["target"], digest))

    def notes(self) -> list[str]:
        return [
            f"no interval where {why} ({len(cells)} cell{'s' * (len(cells) > 1)}: "
            f"{', '.join(sorted(cells)[:3])}{', ...' * (len(cells) > 3)})"
            for why, cells in self.absent.items()
        ]


def _with_intervals(grid: Grid, numbers: dict[Place, Resampled], count: int) -> Summary:
    best: set[Place] = set()
    for places in _columns(numbers).values():
        if len(places) > 1:
            inside_M = stats.may_be_best(np.stack([numbers[place].v_R for place in places]))
            best |= {place for place, inside in zip(places, inside_M, strict=True) if inside}

    def beside(line: tuple[str, ...], known: Known) -> str:
        if not (number := numbers.get((line, known))):
            return ""
        _, low, high = stats.interval(number.v_R)
        return f" [{low:.3f}, {high:.3f}]" + " †" * ((line, known) in best)

    said = (
        f", [95 % interval of it on other test images, the encoders as they are: {count:,} "
        "resamples, the same for all lines]"
    )
    if best:
        said += (
            ", † not distinguishable from the best of its column on this target (the lines with † "
            "hold the true best in 95 of 100 test sets)"
        )
    return tables.summary(grid, beside, said)


def _columns(numbers: dict[Place, Resampled]) -> dict[tuple, list[Place]]:
    """The numbers that can be compared: one test set, one share of the labels."""
    found = defaultdict(list)
    for (line, known), number in numbers.items():
        found[number.test_set, known].append((line, known))
    return found


def _differences(
    grid: Grid, numbers: dict[Place, Resampled], against: str, count: int, told: dict[str, None]
) -> list[Summary]:
    """A table of what each line has over its baseline, or none where there is no baseline."""
    baseline = {line: _baseline(line, grid, against) for line in grid.lines}
    d_R = {
        (line, known): number.v_R - numbers[baseline[line], known].v_R
        for (line, known), number in numbers.items()
        if (baseline[line], known) in numbers
        and number.test_set == numbers[baseline[line], known].test_set
    }
    if not d_R:
        return []
    p = dict(zip(d_R, stats.holm([stats.p_value(d) for d in d_R.values()]), strict=True))
    if len(p) * 2 / (count + 1) > ALPHA:
        told[
            f"{count:,} resamples cannot give a p of {len(p)} below {ALPHA} after Holm: "
            f"--bootstrap {40 * len(p)} can"
        ] = None

    def text(place: Place) -> str:
        if place not in d_R:
            return "-"
        value, low, high = stats.interval(d_R[place])
        line, known = place
        spread = _spread(grid.lines[line][known], grid.lines[baseline[line]][known])
        return f"{value:+.3f}{spread} [{low:+.3f}, {high:+.3f}] {_p(p[place])}"

    lines = dict.fromkeys(line for line, _ in d_R)
    return [
        Summary(
            title=f"{grid.title}, difference to {against}",
            header=grid.header,
            rows=[[*line, *(text((line, k)) for k in grid.columns)] for line in lines],
            caption=f"difference to {against} of the same target, dataset, backbone, init and "
            f"size: mean ± sd over pairs of one seed, [95 % interval on other test images] and p "
            f"from {count:,} paired resamples; p is two-sided, after Holm over the {len(p)} of "
            "this table, and of test images, not of seeds",
        )
    ]


def _spread(rows: list[dict], other: list[dict]) -> str:
    """± sd of the difference over pretraining seeds, where both have the same two or more."""
    a, b = tables.by_seed(rows), tables.by_seed(other)
    if len(a) < 2 or a.keys() != b.keys():
        return ""
    return f" ± {stdev(tables.value(a[seed]) - tables.value(b[seed]) for seed in a):.3f}"


def _baseline(line: tuple[str, ...], grid: Grid, against: str) -> tuple[str, ...] | None:
    """The one line of `against` that shares what the line starts from; None if not just one."""
    own = _first(grid, line)
    if own["method"] == against:
        return None

    def alike(axes: Iterable[str], lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [o for o in lines if all(_first(grid, o)[axis] == own[axis] for axis in axes)]

    found = alike(START, [o for o in grid.lines if _first(grid, o)["method"] == against])
    if len(found) > 1:
        found = alike(RECIPE, found)
    return found[0] if len(found) == 1 else None


def _first(grid: Grid, line: tuple[str, ...]) -> dict:
    return next(iter(grid.lines[line].values()))[0]


def _ranks(grid: Grid) -> list[Summary]:
    """Mean ranks over the targets that all methods were judged on; none below three targets."""
    at = grid.shown.index("target")
    values: dict = defaultdict(lambda: defaultdict(dict))
    for line, of_line in grid.lines.items():
        for known, rows in of_line.items():
            values[known][line[at]][line[:at] + line[at + 1 :]] = tables.value(rows)
    systems = list(dict.fromkeys(line[:at] + line[at + 1 :] for line in grid.lines))
    columns, said = {}, []
    for known in grid.columns:
        whole = [of for of in values[known].values() if len(of) == len(systems)]
        if len(whole) < 3 or len(systems) < 2:
            continue
        v_DM = np.array([[of[system] for system in systems] for of in whole])
        columns[tables.heading(known)], found = _ranked(v_DM)
        said.append(f"{tables.heading(known)}: {len(whole)} targets, {found}")
    if not columns:
        return []
    caption = "1 is the best"
    if len(systems) > 2:
        caption += "; methods that share a letter are not distinguishable (Nemenyi, 5 %)"
    return [
        Summary(
            title=f"{grid.title}, mean rank over targets",
            header=[*(axis for axis in grid.shown if axis != "target"), *columns],
            rows=[
                [*system, *ranks] for system, *ranks in zip(systems, *columns.values(), strict=True)
            ],
            caption="; ".join([caption, *said]),
        )
    ]


def _ranked(v_DM: np.ndarray) -> tuple[list[str], str]:
    """Of each method its mean rank and groups, and the test of all."""
    targets, methods = v_DM.shape
    rank_M = stats.mean_ranks(v_DM)
    if methods == 2:
        return [f"{rank:.2f}" for rank in rank_M], f"Wilcoxon {_p(stats.wilcoxon(*v_DM.T))}"
    difference = stats.nemenyi(methods, targets, ALPHA)
    groups = stats.groups(rank_M, difference)
    letters = [
        "".join(ascii_lowercase[i % 26] for i, of in enumerate(groups) if m in of)
        for m in range(methods)
    ]
    ranks = [f"{rank:.2f} {of}" for rank, of in zip(rank_M, letters, strict=True)]
    p = stats.friedman(v_DM).p_f
    return ranks, f"Friedman (Iman-Davenport) {_p(p)}, critical difference {difference:.2f}"


def _p(p: float) -> str:
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"
