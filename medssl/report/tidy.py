"""The numbers of a table as a file to go on with: one row each, and nothing rounded.

What a number has none of is empty: no interval without predictions, no difference of a baseline to
itself, no sd of one seed.
"""

from collections.abc import Iterable
from statistics import stdev

import numpy as np

from medssl import stats
from medssl.report import tables, variances
from medssl.report.intervals import Compared, Difference
from medssl.report.resampled import Resampled


def rows(found: Iterable[Compared], against: str, correct: str) -> list[dict]:
    """Of every number its axes, value, interval, and difference to `against` of the same start."""
    made = []
    for one in found:
        for line, of_line in one.grid.lines.items():
            for known in one.grid.columns:
                if not (of := of_line.get(known)):
                    continue
                seeds = [tables.value(of_seed) for of_seed in tables.by_seed(of).values()]
                number = one.numbers.get((line, known))
                made.append({
                    **{axis: of[0][axis] for axis in ("eval", "settings", "metric", *tables.AXES)},
                    **{axis: of[0][axis] for axis in ("label_fraction", "shots")},
                    "seeds": len(seeds),
                    "value": tables.value(of),
                    "sd": stdev(seeds) if len(seeds) > 1 else None,
                    **_interval(number),
                    "may_be_best": (line, known) in one.best if number else None,
                    **_difference(one.differences.get((line, known)), against, correct),
                    "family": len(one.differences),
                    **_spread(number),
                })  # fmt: skip
    return made


def _interval(number: Resampled | None) -> dict:
    _, low, high = stats.interval(number.v_R) if number else (None, None, None)
    return {"low": low, "high": high, "resamples": len(number.v_R) - 1 if number else None}


def _difference(d: Difference | None, against: str, correct: str) -> dict:
    names = "diff", "diff_low", "diff_high", "diff_sd", "p", "p_adjusted", "p_delong"
    values = (*d.interval, d.spread, d.p, d.adjusted, d.delong) if d else [None] * len(names)
    told = {"against": against if d else "", "correction": correct if d else ""}
    return told | dict(zip(names, values, strict=True))


def _spread(number: Resampled | None) -> dict:
    """sd_pretraining, ...: by one kind of seed each; sd_sampling by test images."""
    try:
        found = variances.components(number) if number else None
    except ValueError:  # unbalanced, which the notes say
        found = None
    sd = {
        kind: np.nan if found is None else getattr(found, kind) ** 0.5 for kind in variances.KINDS
    }
    return {f"sd_{kind}": None if np.isnan(value) else value for kind, value in sd.items()}
