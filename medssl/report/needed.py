"""With how few labels does an encoder reach the baseline that has them all? REMEDIS's question.

    a line's numbers over shares of the labels, the baseline's with all -> where they cross, and []

The baseline's own line is the control: where it needs 30 % by itself, another that needs 30 % saves
nothing. A line and its baseline are of one evaluation and one start: what fine-tuning needs is not
asked of a frozen encoder. [] is of other test images alone; which images are labelled, and the
seeds, stay as they are. Shots are no share of the labels. How a crossing is found:
`stats.labels_needed`. Azizi et al. 2023, https://doi.org/10.1038/s41551-023-01049-7
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from medssl import stats
from medssl.report import intervals, tables
from medssl.report.resampled import Place, Predictions, Resampled
from medssl.report.tables import ALL_LABELS, Grid, Summary
from medssl.spec import NONE

# F label fractions, R the test set and its resamples


def summaries(
    rows: Iterable[dict],
    metric: str,
    predictions: Callable[[str], Mapping[str, np.ndarray]],
    count: int = 1000,
    against: str | None = None,
) -> tuple[list[Summary], list[str]]:
    """Of each line the labels it needs, a table per evaluation; and notes.

    Arguments as of `intervals.summaries`. ValueError for what is not there to be asked about, and
    where no line has a curve and a baseline.
    """
    rows, against = list(rows), against or NONE
    intervals.check(rows, metric, against)
    found, told, read = [], defaultdict(list), Predictions(predictions, metric, count)
    for grid in tables.grids(rows, metric):
        found += _table(grid, read, count, against, told)
    notes = [
        f"{why} ({', '.join(lines[0])}" + f" and {len(lines) - 1} more" * (len(lines) > 1) + ")"
        for why, lines in told.items()
    ]
    if not found:
        raise ValueError("; ".join(notes))
    if {row["method"] for row in rows} == {against}:
        notes.append(f"nothing but {against} has been measured: no other line to reach it yet")
    return found, [*notes, *read.notes()]


def _table(
    grid: Grid, read: Predictions, count: int, against: str, told: dict[str, list]
) -> list[Summary]:
    """The lines that have a curve and a baseline; `told` why the others are not there."""
    start = f"of the same {intervals.shared(grid, against)}"

    def said(seen: str) -> str:
        """What the entries mean, of the signs that are among them."""
        smallest = "; <=: the smallest measured, fewer may do" * ("<=" in seen)
        never = "; not reached: nor with the most that were measured" * ("not reached" in seen)
        return (
            f"; labels needed: the smallest share with which a line reaches {against} with all "
            f"labels, {start} (of {against} itself: how few would have done), where between two "
            "measured shares the score is a line in log10 of the share, and the last of several "
            f"crossings counts{smallest}{never}; [95 % interval on other test images, the encoders "
            f"and the labelled images as they are: {count:,} resamples, the same for a line and "
            "its baseline]"
        )

    plain = tables.summary(grid)
    at = {known: len(grid.shown) + i for i, known in enumerate(grid.columns)}.get(ALL_LABELS)
    texts = dict(zip(grid.lines, plain.rows, strict=True))
    numbers = {
        (line, known): read.number(of_number)
        for line, of_line in grid.lines.items()
        for known, of_number in of_line.items()
        if not known[0]
    }
    lines = []
    for line in grid.lines:
        own = intervals.first(grid, line)["method"] == against
        goal = (line if own else intervals.baseline(line, grid, against)), ALL_LABELS
        curve = sorted(place for place in numbers if place[0] == line)
        if goal not in numbers:
            told[
                f"no labels needed where {against} {start} has no line, or several, with all "
                f'labels: it needs one, of method="{against}" and label_fraction=1.0'
            ].append(line)
        elif len(curve) > 1:
            scores = texts[goal[0]][at], texts[line][at]
            needed = _needed(grid, curve, goal, numbers, told)
            lines.append([*texts[line][: len(grid.shown)], *scores, needed])
        elif not own:
            told[
                "no labels needed where a line has fewer than two shares of the labels: it needs "
                "label_fraction=[0.01, 0.1, 1.0], or others"
            ].append(line)
    header = [*grid.shown, f"{against} 100%", "own 100%", "labels needed"]
    title = f"{grid.title}, labels needed to reach {against} with all"
    seen = " ".join(line[-1] for line in lines)
    caption = tables.summary(grid, said=said(seen)).caption
    return [Summary(title, header, lines, caption)] if lines else []


def _shares(curve: list[Place], rows: dict[Place, list[dict]], goal: Place) -> list[float]:
    """Of the images that `goal` had labelled; as asked for, where any of the rows do not say."""
    known = [rows[place][0].get("labelled") for place in (*curve, goal)]
    if not all(known):
        return [fraction for _, (_, fraction) in curve]
    return [labelled / known[-1] for labelled in known[:-1]]


def _needed(
    grid: Grid,
    curve: list[Place],
    goal: Place,
    numbers: dict[Place, Resampled | None],
    told: dict[str, list],
) -> str:
    """ "7.4 % [3.1 %, not reached]"; no interval where a number has no predictions."""
    places = [*curve, goal]
    rows = {(line, known): grid.lines[line][known] for line, known in places}
    found = [numbers[place] for place in places]
    paired = None not in found and len({number.test_set for number in found}) == 1
    if paired:
        v_FR = np.stack([number.v_R for number in found])
    else:
        v_FR = np.array([[tables.value(rows[place])] for place in places])
        if None not in found:
            told["no interval where a line and its baseline have other test images"].append(
                curve[0][0]
            )
    shares = _shares(curve, rows, goal)
    other = [i for i, share in enumerate(shares) if share not in shares[:i]]  # than one before it

    def percent(share: float) -> str:
        return f"{float(f'{100 * share:.2g}'):g} %"

    def text(share: stats.Needed) -> str:
        if share.fraction is None:
            return "not reached" + (f" with {percent(shares[-1])}" if shares[-1] < 1 else "")
        return "<= " * share.at_or_below + percent(share.fraction)

    v_FR = intervals.sign(grid) * v_FR
    needed = stats.labels_needed([shares[i] for i in other], v_FR[other], v_FR[-1])
    value, low, high = map(text, needed)
    seeds = min(len(tables.by_seed(of_number)) for of_number in rows.values())
    fewer = seeds < len({row["seed"] for row in grid.rows})
    return value + f" [{low}, {high}]" * paired + f" (n={seeds})" * fewer
