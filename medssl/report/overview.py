"""A sweep on a page, as its run in MLflow shows it: how far it is, what it varies, its tables.

The page is of the whole sweep, and the driver of any part can write it: the store has all of it.
"""

from collections.abc import Sequence

from medssl import plan, watch
from medssl.report import tables
from medssl.spec import Cell
from medssl.status import RUNNING, Status
from medssl.tracking import Overview

METRIC = "auroc"
ROOM = 8000  # letters of a description that MLflow keeps
FAILED = 5  # trials whose reasons are told
REST = "\n\nThere is more: `medssl table`.\n"


def overview(cells: Sequence[Cell], status: Status, rows: list[dict]) -> Overview:
    """Of the cells of a sweep, where they stand, and the rows of METRIC that there are of them."""
    states, missing = status.states, status.cells - status.cells_done
    counts = {
        "sweep/cells": status.cells,
        "sweep/done": status.cells_done,
        "sweep/missing": missing,
        "sweep/failed": sum(len(t.cells) - t.done for t in status.of("failed")),
    }
    codes = sorted({row[by] for row in rows for by in ("code", "encoder_code")} - {None, ""})
    state = next((s for s in (*RUNNING, "failed") if states[s]), "waiting")
    return Overview(state if missing else "finished", counts, codes, _note(cells, status, rows))


def _note(cells: Sequence[Cell], status: Status, rows: list[dict]) -> str:
    """Markdown; of more than there is room for, whole lines of its beginning."""
    axes = [f"| {axis} | {', '.join(values)} |" for axis, values in plan.axes(cells).items()]
    failed = [
        f"- failed: {t.spec.method} on {t.spec.dataset}, `{t.spec.id}`: {watch.reason(t)}"
        for t in status.of("failed")[:FAILED]
    ]
    found = tables.markdown(tables.summaries(rows, METRIC), tables.notes(rows)) if rows else ""
    parts = [f"**{watch.line(status)}**", "\n".join(failed), found]
    parts.append("\n".join(["| axis | values |", "| --- | --- |", *axes]))
    text = "\n".join(map(_spaced, "\n\n".join(filter(None, parts)).splitlines()))
    return text if len(text) <= ROOM else text[: ROOM - len(REST)].rpartition("\n")[0] + REST


def _spaced(line: str) -> str:
    """MLflow draws the columns of a table with nothing between them."""
    return line if line.startswith("| ---") else line.replace(" | ", "&emsp; | ")
