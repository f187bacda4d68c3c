"""Is the difference in a table more than the luck of its test images? Intervals, p, ranks.

    stored predictions -> resamples shared by all cells of a test set -> tables beside the numbers

± and [] answer two questions, and neither holds the other: ± is what another pretraining seed does
on the same test images, [] what other test images do to the mean of the same encoders. Two
intervals that overlap say little of a difference, which is paired and so has a table of its own.
No encoder, image or GPU is needed. A number is given an interval only if its predictions give back
the number itself; what has none is in the notes.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from statistics import stdev
from string import ascii_letters
from typing import NamedTuple

import numpy as np

from medssl import registry, stats
from medssl.report import tables, variances
from medssl.report.resampled import Place, Predictions, Resampled
from medssl.report.tables import RECIPE, Grid, Known, Summary
from medssl.spec import NONE

START = "target", "label", "source", "dataset", "backbone", "init", "image_size"  # as the baseline
ALPHA = 0.05
CORRECTIONS = {  # of p, for a family: its name, and what does it
    "holm": ("Holm", stats.holm),
    "bh": ("Benjamini-Hochberg", stats.benjamini_hochberg),
}

# N test images, K classes, R the test set and its resamples, M lines, D targets


class Difference(NamedTuple):
    """Of a number to its baseline's, paired on the same resamples."""

    interval: stats.Interval
    spread: float | None  # sd over pairs of one pretraining seed, where both have the same
    p: float
    adjusted: float  # p, for the family of its table
    delong: float | None  # p by DeLong, where both are of a single AUROC

    @property
    def doubted(self) -> bool:
        return self.delong is not None and (self.p <= ALPHA) != (self.delong <= ALPHA)


@dataclass
class Compared:
    """A table and all that is known of its numbers."""

    grid: Grid
    numbers: dict[Place, Resampled]
    best: set[Place]  # what may be the best of its column
    differences: dict[Place, Difference]


def summaries(
    rows: Iterable[dict],
    metric: str,
    predictions: Callable[[str], Mapping[str, np.ndarray]],
    count: int = 1000,
    against: str | None = None,
    correct: str = "holm",
    per_label: bool = False,
) -> tuple[list[Summary], list[str]]:
    """What `compare` finds as tables, each followed by differences, ranks and variances; notes."""
    found, notes = compare(rows, metric, predictions, count, against, correct, per_label)
    made = []
    for one in found:
        made.append(_with_intervals(one, count))
        made += _differences(one, against or NONE, count, CORRECTIONS[correct][0])
        made += (ranks := _ranks(one.grid))
        notes += _unranked(one.grid) * (not ranks)
        spread, told = variances.summary(one.grid, one.numbers)
        made += spread
        notes += told
    return made, list(dict.fromkeys(notes))


def compare(
    rows: Iterable[dict],
    metric: str,
    predictions: Callable[[str], Mapping[str, np.ndarray]],
    count: int = 1000,
    against: str | None = None,
    correct: str = "holm",
    per_label: bool = False,
) -> tuple[list[Compared], list[str]]:
    """Intervals and differences of the numbers of every table, and notes.

    `predictions` gives a cell's target (N, K) and scores (N, K) by its id, or raises ValueError or
    OSError. `against` is the method of the baselines, none if there is one. p are adjusted for all
    differences of a table. ValueError for a metric that is not of predictions, and for a baseline
    that is not in the table.
    """
    rows = list(rows)
    check(rows, metric, against)
    read = {name: Predictions(predictions, name, count) for name in {r["metric"] for r in rows}}
    found, notes = [], []
    for grid in tables.grids(rows, metric, per_label):
        numbers = {
            (line, known): number
            for line, of_line in grid.lines.items()
            for known, of_number in of_line.items()
            if (number := read[of_number[0]["metric"]].number(of_number))
        }
        differences = _compared(grid, numbers, against or NONE, CORRECTIONS[correct][1])
        found.append(Compared(grid, numbers, _best(grid, numbers), differences))
        notes += _too_few(len(differences), count, correct)
        notes += _unlike(grid, differences, against or NONE)
    notes += [note for of_metric in read.values() for note in of_metric.notes()]
    return found, list(dict.fromkeys(notes))


def check(rows: list[dict], metric: str, against: str | None) -> None:
    """ValueError for a metric that is not of predictions, and for a method that is not there."""
    known = metric in stats.METRICS or stats.of_label(metric)
    asked = re.fullmatch(stats.DETECTION, metric) or re.fullmatch(stats.ERROR, metric)
    if not known and not asked:
        raise ValueError(
            f"no intervals of {metric!r}: kept predictions of test images give "
            f"{', '.join(stats.CHOICES)}"
        )
    methods = sorted({row["method"] for row in rows})
    if against is not None and against not in methods:
        raise ValueError(f"no {against!r} to compare with: {registry.choose(against, methods)}")


def _best(grid: Grid, numbers: dict[Place, Resampled]) -> set[Place]:
    best: set[Place] = set()
    for places in _columns(grid, numbers).values():
        if len(places) > 1:
            v_MR = sign(grid) * np.stack([numbers[place].v_R for place in places])
            inside_M = stats.may_be_best(v_MR)
            best |= {place for place, inside in zip(places, inside_M, strict=True) if inside}
    return best


def _columns(grid: Grid, numbers: dict[Place, Resampled]) -> dict[tuple, list[Place]]:
    """The numbers that can be compared: one test set, one label of it, one share of the labels."""
    found = defaultdict(list)
    for (line, known), number in numbers.items():
        found[number.test_set, first(grid, line)["label"], known].append((line, known))
    return found


def _compared(
    grid: Grid, numbers: dict[Place, Resampled], against: str, adjusted: Callable
) -> dict[Place, Difference]:
    """What each number has over its baseline's; none where there is no baseline."""
    base = {line: baseline(line, grid, against) for line in grid.lines}
    pairs = {
        (line, known): (number, other)
        for (line, known), number in numbers.items()
        if (other := numbers.get((base[line], known))) and number.test_set == other.test_set
    }
    d_R = {place: number.v_R - other.v_R for place, (number, other) in pairs.items()}
    p = {place: stats.p_value(d) for place, d in d_R.items()}
    family = dict(zip(p, adjusted(list(p.values())), strict=True)) if p else {}
    return {
        (line, known): Difference(
            stats.interval(d_R[line, known]),
            _spread(grid.lines[line][known], grid.lines[base[line]][known]),
            p[line, known],
            float(family[line, known]),
            _delong(*pairs[line, known]),
        )
        for line, known in pairs
    }


def _delong(number: Resampled, other: Resampled) -> float | None:
    if number.t_N is None:
        return None
    try:
        return stats.contrast_p(number.placed_N - other.placed_N, number.t_N)
    except ValueError:  # too few positives or negatives
        return None


def _unlike(grid: Grid, differences: Iterable[Place], against: str) -> list[str]:
    """A note where a difference is of means over other seeds than the baseline's."""
    unlike = [
        line
        for line, known in differences
        if _seeds(grid.lines[line][known])
        != _seeds(grid.lines[baseline(line, grid, against)][known])
    ]
    if not unlike:
        return []
    named = "; ".join(", ".join(line) for line in dict.fromkeys(unlike[:3]))
    return [
        f"{len(unlike)} of {len(differences)} differences to {against} are of means over other "
        f"pretraining or subset seeds than its own: run what is missing ({named})"
    ]


def _too_few(family: int, count: int, correct: str) -> list[str]:
    """A note where the smallest p that there can be does not survive the correction alone."""
    alone = family * 2 / (count + 1)
    if alone <= ALPHA:
        return []
    name, together = CORRECTIONS[correct][0], ceil(alone / ALPHA - 1e-9)
    if correct == "holm" or together > family:
        return [
            f"{count:,} resamples cannot give a p of {family} below {ALPHA} after {name}: "
            f"--bootstrap {40 * family} can"
        ]
    return [
        f"{count:,} resamples give a p below {ALPHA} after {name} only where {together} or more of "
        f"{family} are as small as can be: --bootstrap {40 * family} do for one alone"
    ]


def _with_intervals(of: Compared, count: int) -> Summary:
    def beside(line: tuple[str, ...], known: Known) -> str:
        if not (number := of.numbers.get((line, known))):
            return ""
        _, low, high = stats.interval(number.v_R)
        return f" [{low:.3f}, {high:.3f}]" + " †" * ((line, known) in of.best)

    said = (
        f", [95 % interval of it on other test images, the encoders as they are: {count:,} "
        "resamples, the same for all lines]"
    ) * bool(of.numbers)
    if of.best:
        said += (
            ", † not distinguishable from the best of its column on this target"
            f"{' and label' * _per_label(of.grid)} (the lines with † "
            "hold the true best in 95 of 100 test sets)"
        )
    return tables.summary(of.grid, beside, said)


def _per_label(grid: Grid) -> bool:
    return "label" in grid.shown


def _differences(of: Compared, against: str, count: int, correction: str) -> list[Summary]:
    """A table of what each line has over its baseline, or none where there is no baseline."""
    if not of.differences:
        return []

    def text(place: Place) -> str:
        if not (d := of.differences.get(place)):
            return "-"
        value, low, high = d.interval
        spread = "" if d.spread is None else f" ± {d.spread:.3f}"
        number = f"{value:+.3f}{spread} [{low:+.3f}, {high:+.3f}]"
        return f"{number} {_p(d.adjusted)}" + " ‡" * d.doubted

    lines = dict.fromkeys(line for line, _ in of.differences)
    return [
        Summary(
            title=f"{of.grid.title}, difference to {against}",
            header=of.grid.header,
            rows=[[*line, *(text((line, k)) for k in of.grid.columns)] for line in lines],
            caption=f"difference to {against} of the same {shared(of.grid, against)}: "
            "mean ± sd over pairs of one seed, [95 % interval on other test images] and p "
            f"from {count:,} paired resamples; p is two-sided, after {correction} over the "
            f"{len(of.differences)} of this table, and of test images, not of seeds"
            + _checked(list(of.differences.values()), correction),
        )
    ]


def _checked(differences: list[Difference], correction: str) -> str:
    """How far DeLong's p is from that of the resamples, both before the correction."""
    apart = [abs(d.p - d.delong) for d in differences if d.delong is not None]
    if not apart:
        return ""
    some = f" ({len(apart)} of {len(differences)}: it is of single AUROCs)"
    return (
        f"; before {correction} DeLong's p, which needs no resamples, is within "
        f"{ceil(max(apart) * 1000) / 1000:.3f} of it{some * (len(apart) < len(differences))}, "
        + (
            f"and on the other side of {ALPHA} where there is ‡"
            if any(d.doubted for d in differences)
            else f"always on the same side of {ALPHA}"
        )
    )


def _spread(rows: list[dict], other: list[dict]) -> float | None:
    """sd of the difference over pretraining seeds, where both have the same seeds, two or more."""
    a, b = tables.by_seed(rows), tables.by_seed(other)
    if len(a) < 2 or _seeds(rows) != _seeds(other):
        return None
    return stdev(tables.value(a[seed]) - tables.value(b[seed]) for seed in a)


def _seeds(rows: Iterable[dict]) -> set[tuple[int, int]]:
    return {(row["seed"], row["subset_seed"]) for row in rows}


def start(*methods: str) -> list[str]:
    """The axes that a line shares with its baseline; not the dataset, where one has seen none."""
    return [axis for axis in START if axis != "dataset" or NONE not in methods]


def shared(grid: Grid, against: str) -> str:
    """`start` in words, of what the table tells apart."""
    told = [
        axis for axis in start(against) if axis not in ("label", "source") or axis in grid.shown
    ]
    return ", ".join(told)


def baseline(line: tuple[str, ...], grid: Grid, against: str) -> tuple[str, ...] | None:
    """The one line of `against` that shares what the line starts from; None if not just one."""
    own = first(grid, line)
    if own["method"] == against:
        return None

    def alike(axes: Iterable[str], lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        def same(row: dict) -> bool:
            return all(tables.text(row, axis) == tables.text(own, axis) for axis in axes)

        return [line for line in lines if same(first(grid, line))]

    found = alike(
        start(own["method"], against),
        [o for o in grid.lines if first(grid, o)["method"] == against],
    )
    if len(found) > 1:
        found = alike(RECIPE, found)
    return found[0] if len(found) == 1 else None


def first(grid: Grid, line: tuple[str, ...]) -> dict:
    """A row of the line, for the axes that its numbers share."""
    return next(iter(grid.lines[line].values()))[0]


def sign(grid: Grid) -> int:
    """-1 where the smaller number is the better."""
    return stats.sign(grid.rows[0]["metric"])


def _ranks(grid: Grid) -> list[Summary]:
    """Mean ranks over the targets that all methods were judged on; none below three targets, and
    none of single labels, which are others on each target."""
    if _per_label(grid):
        return []
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
        v_DM = sign(grid) * np.array([[of[system] for system in systems] for of in whole])
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


def _unranked(grid: Grid) -> list[str]:
    """A note where a table of several lines and three targets or more has no ranks."""
    at = grid.shown.index("target")
    lines = {line[:at] + line[at + 1 :] for line in grid.lines}
    if _per_label(grid) or len({line[at] for line in grid.lines}) < 3 or len(lines) < 2:
        return []
    return [f"no mean ranks of {grid.title}: no three targets have numbers of all lines"]


def _ranked(v_DM: np.ndarray) -> tuple[list[str], str]:
    """Of each method its mean rank and groups, and the test of all."""
    targets, methods = v_DM.shape
    rank_M = stats.mean_ranks(v_DM)
    if methods == 2:
        return [f"{rank:.2f}" for rank in rank_M], f"Wilcoxon {_p(stats.wilcoxon(*v_DM.T))}"
    difference = stats.nemenyi(methods, targets, ALPHA)
    groups = stats.groups(rank_M, difference)
    letters = [
        "".join(_letter(i) for i, of in enumerate(groups) if m in of) for m in range(methods)
    ]
    ranks = [f"{rank:.2f} {of}" for rank, of in zip(rank_M, letters, strict=True)]
    p = stats.friedman(v_DM).p_permuted
    return ranks, f"Friedman (permuted ranks) {_p(p)}, critical difference {difference:.2f}"


def _letter(i: int) -> str:
    return ascii_letters[i] if i < len(ascii_letters) else f"({i})"


def _p(p: float) -> str:
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"
