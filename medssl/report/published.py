"""Are our numbers the published ones? Side by side, and whether theirs lies in our interval.

    CSV of published numbers + rows + stored predictions -> a table per evaluation and metric

Published numbers of MedMNIST are of the same test images as ours, so that the interval, which is of
other test images, says how much a difference matters and not whether it is one: for that, look at
± of our seeds. Only numbers of all labels are compared.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import stdev
from typing import NamedTuple

import numpy as np

from medssl import stats
from medssl.report import tables
from medssl.report.resampled import Predictions
from medssl.report.tables import ALL_LABELS, Summary

METRICS = {"auc": "auroc", "auroc": "auroc", "acc": "accuracy", "accuracy": "accuracy"}
ABSENT = "", "-", "–", "—", "n/a", "na", "nan"
METRICS |= {"bacc": "balanced_accuracy", "balanced_accuracy": "balanced_accuracy"}


class Published(NamedTuple):
    dataset: str  # "breastmnist"
    of: str  # whatever else the file says of the number: "LP ResNet-18"
    metric: str
    size: int | None  # pixels; None where the file does not say
    value: float  # in [0, 1]


def read(file: Path, only: str | None = None) -> list[Published]:
    """The numbers of a CSV with a column `dataset`, columns named auc, acc, ... (auc64: at 64 px),
    each in [0, 1] or in %, and others that say whose they are; those alone in which one is `only`.

    ValueError with a remedy where it is no such file, or has no `only`.
    """
    try:
        with file.open(newline="") as opened:
            lines = list(csv.DictReader(opened))
    except FileNotFoundError:
        raise ValueError(f"no file {file}: name a CSV of published numbers") from None
    except (OSError, UnicodeDecodeError, csv.Error) as wrong:
        raise ValueError(f"{file} cannot be read as CSV: {wrong}") from None
    columns = list(lines[0]) if lines else []
    parts = {c: re.fullmatch(r"([a-z_]+?)(\d*)", c) for c in columns}  # auc64 is auc, at 64
    numbers = {c: match for c, match in parts.items() if match and match[1] in METRICS}
    if "dataset" not in columns or not numbers:
        raise ValueError(
            f"{file} needs a column dataset, and one or more of {', '.join(METRICS)}, each with an "
            f"image size behind it or not: it has {', '.join(columns) or 'no line'}"
        )
    told = [c for c in columns if c not in numbers and c != "dataset"]
    kept = [line for line in lines if only is None or only in (line[c] for c in told)]
    if not kept:
        known = sorted({line[c] for line in lines for c in told})
        raise ValueError(f"{file} has no {only!r}: choose from {', '.join(known)}")
    values = {column: _column(file, lines, column) for column in numbers}
    found = []
    for at, line in enumerate(lines):
        of = " ".join(filter(None, (line[c] for c in told)))
        for column, match in numbers.items():
            if line in kept and (value := values[column][at]) is not None:
                size = int(match[2]) if match[2] else None
                found.append(Published(line["dataset"], of, METRICS[match[1]], size, value))
    return found


def _column(file: Path, lines: list[dict], column: str) -> list[float | None]:
    """The numbers of a column, in [0, 1] whatever they are in; None where there is none."""
    found = []
    for at, line in enumerate(lines, 2):
        try:
            text = (line[column] or "").strip().rstrip("%")
            found.append(None if text.lower() in ABSENT else float(text))
        except ValueError:
            raise ValueError(
                f"{file}, line {at}: {column} is {line[column]!r}, no number: write - where there "
                "is none"
            ) from None
    percent = any(value is not None and value > 1.5 for value in found)
    return [value if value is None or not percent else value / 100 for value in found]


def compare(
    rows: Iterable[dict],
    published: Iterable[Published],
    predictions: Callable[[str], Mapping[str, np.ndarray]],
    count: int = 1000,
) -> tuple[list[Summary], list[str]]:
    """A table per evaluation and metric, and notes; ValueError where nothing can be compared.

    Theirs are of classifiers, and so are the rows taken: an `ood` has an AUROC of something else.
    """
    measured, published, found, notes = list(rows), list(published), [], []
    classify = {row["cell"] for row in measured if row["metric"] == "accuracy"}
    rows = [row for row in measured if row["cell"] in classify]
    for metric in dict.fromkeys(one.metric for one in published):
        kept = Predictions(predictions, metric, count)
        for grid in tables.grids(rows, metric):
            every = len({row["seed"] for row in grid.rows})
            lines = [
                [*line, one.of, *_beside(of_line[ALL_LABELS], one, kept, every)]
                for line, of_line in grid.lines.items()
                for one in published
                if ALL_LABELS in of_line and _same(of_line[ALL_LABELS][0], one, metric)
            ]
            if lines:
                header = [*grid.shown, "published", "theirs", "ours", "difference", "inside"]
                caption = tables.summary(grid).caption
                said = f"all labels; inside: theirs is in our 95 % interval of {count} resamples"
                found.append(Summary(grid.title, header, lines, f"{said}; {caption}"))
        notes += kept.notes()
    if not found:
        ours = sorted({f"{row['target']} at {row['image_size']} px" for row in measured})
        theirs = sorted({one.dataset for one in published})
        raise ValueError(
            f"nothing to compare: the file is of {', '.join(theirs)}; the sweep has measured "
            f"{', '.join(ours) if ours else 'nothing yet, run it first'}"
        )
    here = set().union(*map(_names, rows))
    if other := list(dict.fromkeys(one.dataset for one in published if one.dataset not in here)):
        notes.append(f"in the file and not measured here: {', '.join(other)}")
    return found, notes


def _same(row: dict, one: Published, metric: str) -> bool:
    return (
        row["source"] in (None, row["target"])
        and one.dataset in _names(row)
        and one.metric == metric
        and one.size in (None, row["image_size"])
    )


def _names(row: dict) -> set[str]:
    """What a file may call the set: phantom/organs, or organs."""
    return {row["target"], row["target"].rpartition("/")[2]}


def _beside(rows: list[dict], one: Published, kept: Predictions, every: int) -> list[str]:
    """Theirs, ours, the difference, whether theirs is inside; fewer than `every` seed are told."""
    value = tables.value(rows)
    seeds = [tables.value(of_seed) for of_seed in tables.by_seed(rows).values()]
    ours = f"{value:.3f}" + (f" ± {stdev(seeds):.3f}" if len(seeds) > 1 else "")
    inside = "-"
    if number := kept.number(rows):
        _, low, high = stats.interval(number.v_R)
        ours += f" [{low:.3f}, {high:.3f}]"
        inside = "yes" if low <= one.value <= high else "no"
    ours += f" (n={len(seeds)})" * (len(seeds) < every)
    return [f"{one.value:.3f}", ours, f"{value - one.value:+.3f}", inside]
