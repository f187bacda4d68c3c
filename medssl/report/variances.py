"""Where is the spread of a number from? Pretraining, the labelled images, heads; and test images.

    {(pretraining, subset, head) seed: value} -> `stats.components` -> a line per number, as sd

± of the other tables is of pretraining seeds, each the mean over its subsets and heads. Here every
kind of seed stands apart, and sampling, which no seed shows, apart from all of them.
"""

from collections import Counter
from itertools import product

import numpy as np

from medssl import stats
from medssl.report import tables
from medssl.report.resampled import Place, Resampled
from medssl.report.tables import Grid, Summary

KINDS = stats.Components._fields[:5]  # pretraining, subset, interaction, head, sampling


def components(number: Resampled) -> stats.Components:
    """Variances of a number by its seeds, `sampling` of itself; ValueError where unbalanced."""
    resampled_R = number.v_R[1:]  # the mean over seeds of each resample is the same for all seeds
    return stats.components({
        seeds: np.r_[value, resampled_R] for seeds, value in number.of_seeds.items()
    })  # fmt: skip


def summary(grid: Grid, numbers: dict[Place, Resampled]) -> tuple[list[Summary], list[str]]:
    """A table, if subsets or heads vary (of pretraining seeds alone ± tells all), and notes."""
    if not any(max(_counts(number)[1:]) > 1 for number in numbers.values()):
        return [], []
    lines, uneven = [], Counter()
    for line, known in product(grid.lines, grid.columns):
        if not (number := numbers.get((line, known))):
            continue
        try:
            found = components(number)
        except ValueError as why:
            uneven[str(why)] += 1
            continue
        seeds = " x ".join(map(str, _counts(number)))
        sd = [_sd(getattr(found, kind), kind in found.cut) for kind in KINDS]
        lines.append([*line, tables.heading(known), seeds, *sd])
    notes = [f"no variances of {n} number{'s' * (n > 1)}: {why}" for why, n in uneven.items()]
    if not lines:
        return [], notes
    return [
        Summary(
            title=f"{grid.title}, where the spread is from",
            header=[*grid.shown, "labels", "seeds", *KINDS],
            rows=lines,
            caption="sd that another seed of one kind makes in the number of one run: pretraining, "
            "subset (which images have labels), interaction (subsets that suit one encoder), head "
            "(all that differs between two runs of an evaluation); seeds: pretraining x subset x "
            "head; 0: estimated below zero; -: one seed cannot show it, and it is part of what "
            "stands left of it; sampling: sd of the mean over all seeds on other test images, in "
            "none of the others",
        )
    ], notes


def _counts(number: Resampled) -> tuple[int, ...]:
    """How many pretraining seeds, and subset and head seeds of one of them."""
    seeds = number.of_seeds
    return tuple(len({of[i] for of in seeds}) for i in range(3))


def _sd(variance: float, cut: bool) -> str:
    return "0" if cut else "-" if np.isnan(variance) else f"{variance**0.5:.3f}"
