"""What is a number of a table on each resample of its test set?

    the rows of a number -> the kept predictions of their cells -> v_R, averaged as in the table

A number that its predictions do not give back has no resamples, and is in the notes.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from medssl import stats
from medssl.report import tables
from medssl.report.tables import Known

FEW = 10  # images of a label, of which resamples are too much alike
LEAST = 3  # of two, one test in seven finds at 0.05 what is not there
OTHERS = (
    "the predictions that were kept, scored again, give another number than the table has: the two "
    "are of different runs; delete rows/CELL.parquet in the store and run the sweep again"
)
OLDER = (
    "an earlier version measured robustness, and kept nothing of each image; delete "
    "rows/CELL.parquet in the store and run the sweep again"
)
KEPT = 2**25  # counts of one set: those of a larger one are drawn again each time
Place = tuple[tuple[str, ...], Known]  # of a number in its table

# N test images, K classes, R the test set and its resamples, H heads,
# C corruptions at a severity


@dataclass
class Resampled:
    """A number of a table, and what it is on each resample of its test set."""

    v_R: np.ndarray
    test_set: tuple[str, str]  # target and a digest of its labels: what can be paired
    of_seeds: dict[tuple[int, int, int], float] = field(default_factory=dict)  # see `stats`
    placed_N: np.ndarray | None = None  # DeLong's placements, where it is a mean of single AUROCs
    t_N: np.ndarray | None = None  # and which images are positive there


class _Cell(NamedTuple):
    v_HR: np.ndarray
    test_set: tuple[str, str]
    placed_N: np.ndarray | None
    t_N: np.ndarray | None


class Predictions:
    """The resampled numbers of cells, and why there are none."""

    def __init__(self, predictions: Callable, metric: str, count: int):
        self.predictions, self.metric, self.count = predictions, metric, count
        self.absent: dict[str, set[str]] = defaultdict(set)
        self.few: dict[str, int] = {}  # target -> images on the smaller side

    def number(self, rows: list[dict]) -> Resampled | None:
        """The mean over seeds of the mean over subset seeds, as in the table; None if one lacks."""
        cells = {row["cell"]: self._cell(row) for row in rows}
        if None in cells.values():
            return None
        if len(test_sets := {cell.test_set for cell in cells.values()}) > 1:
            self.absent["the seeds of a number have other test images"] |= cells.keys()
            return None

        def averaged(of: Callable[[_Cell], np.ndarray]) -> np.ndarray:
            seeds = tables.by_seed(rows).values()
            means = [np.mean([of(cells[row["cell"]]) for row in rows], axis=0) for rows in seeds]
            return np.mean(means, axis=0)

        one = cells[rows[0]["cell"]]
        return Resampled(
            averaged(lambda cell: cell.v_HR.mean(0)),
            test_sets.pop(),
            {
                (row["seed"], row["subset_seed"], head): float(v_R[0])
                for row in rows
                for head, v_R in enumerate(cells[row["cell"]].v_HR)
            },
            None if one.t_N is None else averaged(lambda cell: cell.placed_N),
            one.t_N,
        )

    def _cell(self, row: dict) -> _Cell | None:
        try:
            kept = self.predictions(row["cell"])
        except (ValueError, OSError):
            self.absent["predictions are missing or cannot be read"].add(row["cell"])
            return None
        if detected := stats.of_detection(self.metric, kept, row["settings"]):
            return self._detected(row, kept["target"], *detected)
        if errors := stats.of_error(self.metric, kept):
            return self._decided(row, kept["target"], *errors)
        if "scores" not in kept:
            older = re.fullmatch(stats.ERROR, self.metric)
            why = OLDER if older else f"{row['eval']} keeps no scores that give it"
            self.absent[why].add(row["cell"])
            return None
        t_NK, heads = kept["target"], [kept["scores"]]
        if not row["task"]:
            self.absent["a row of an earlier version does not say its task"].add(row["cell"])
            return None
        heads += [more for name, more in kept.items() if name.startswith("scores_head_")]
        counts_NR = _counts(len(t_NK), self.count)
        v_HR = np.stack([
            stats.score(s_NK, t_NK, row["task"], self.metric, counts_NR) for s_NK in heads
        ])  # fmt: skip
        if abs(v_HR[:, 0].mean() - row["value"]) > 1e-9:  # of several heads its row is the mean
            self.absent[OTHERS].add(row["cell"])
            return None
        placed_N = t_N = None
        if (side := _side(t_NK, row["task"], self.metric)) < LEAST:
            self.absent[
                f"a label is that of fewer than {LEAST} test images, or all but so few"
            ].add(row["cell"])
            return None
        if side < FEW:
            self.few[row["target"]] = int(side)
        if (k := stats.single(t_NK, row["task"], self.metric)) is not None:
            t_N = np.asarray(t_NK[:, k]) > 0.5
            placed_N = stats.placements(np.stack([s_NK[:, k] for s_NK in heads]), t_N).mean(0)
        return _Cell(v_HR, (row["target"], _digest(t_NK)), placed_N, t_N)

    def _decided(
        self, row: dict, t_NK: np.ndarray, kind: str, code_NC: np.ndarray, clean_N: np.ndarray
    ) -> _Cell | None:
        """An error of robustness, from what was decided under each corruption and without."""
        counts_NR = _counts(len(t_NK), self.count)
        v_R = stats.error(kind, code_NC, clean_N, t_NK, row["task"], counts_NR)
        if abs(v_R[0] - row["value"]) > 1e-9:
            self.absent[OTHERS].add(row["cell"])
            return None
        return _Cell(v_R[None], (row["target"], _digest(t_NK)), None, None)

    def _detected(
        self, row: dict, t_NK: np.ndarray, in_N: np.ndarray, out: dict[str, np.ndarray]
    ) -> _Cell | None:
        """An AUROC against other sets, whose images are drawn apart: the mean over these."""
        drawn_NR, found = _counts(len(in_N), self.count), []
        for name, s_M in out.items():
            own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            c_NR = np.concatenate([drawn_NR, _counts(len(s_M), self.count, own)])
            s_N, t_N = np.concatenate([in_N, s_M]), np.arange(len(c_NR)) < len(in_N)
            found.append(stats.auroc(s_N[:, None], t_N[:, None], c_NR)[0])
        v_R = np.mean(found, axis=0)
        if abs(v_R[0] - row["value"]) > 1e-9:
            self.absent[OTHERS].add(row["cell"])
            return None
        known = [t_NK.tobytes(), *(f"{name} {len(s_M)}".encode() for name, s_M in out.items())]
        test_set = row["target"], hashlib.sha256(b"\n".join(known)).hexdigest()
        if len(out) > 1:
            return _Cell(v_R[None], test_set, None, None)
        return _Cell(v_R[None], test_set, stats.placements(s_N, t_N)[0], t_N)

    def notes(self) -> list[str]:
        return [
            f"no interval where {why} ({len(cells)} cell{'s' * (len(cells) > 1)}: "
            f"{', '.join(sorted(cells)[:3])}{', ...' * (len(cells) > 3)})"
            for why, cells in self.absent.items()
        ] + [
            f"{self.metric} of {target} rests on {side} test images of a label: intervals are too "
            "narrow and p too small where there are so few"
            for target, side in self.few.items()
        ]


def _digest(t_NK: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(t_NK)).hexdigest()


def _side(t_NK: np.ndarray, task: str, metric: str) -> float:
    """How many test images a number of a single label rests on; inf for one of all labels."""
    name, k = stats.of_label(metric) or ("auroc", stats.single(t_NK, task, metric))
    if k is None or k >= t_NK.shape[1]:
        return np.inf
    ups = np.count_nonzero(np.asarray(t_NK[:, k]) > 0.5)
    return min(ups, len(t_NK) - ups) if name == "auroc" else ups


def _counts(n: int, count: int, seed: int = 0) -> np.ndarray:
    return (_kept if n * count < KEPT else stats.resamples)(n, count, seed)


@lru_cache(12)  # of a target, and of all sets that it is told from
def _kept(n: int, count: int, seed: int) -> np.ndarray:
    return stats.resamples(n, count, seed)
