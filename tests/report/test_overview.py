"""A sweep on a page: it counts what the store has, and fits into what MLflow keeps."""

import json

import numpy as np

from medssl import results, status
from medssl.report.overview import METRIC, ROOM, overview
from medssl.spec import Sweep
from medssl.store import Store

SWEEP = Sweep(
    name="t", method=["none", "simclr"], dataset="phantom/cells", backbone="vit/tiny-14", eval="knn"
)
CELLS = SWEEP.cells()


def measure(store, cells, code="0.1.0+abc"):
    for cell in cells:
        told = {"code": code, "encoder_code": "0.0.9"}
        results.save(store, cell, {"auroc": 0.75}, {"scores": np.zeros((2, 2), np.float32)}, told)


def of(store, cells=CELLS):
    rows = results.only(results.table(store, cells), METRIC).to_pylist()
    return overview(cells, status.read(cells, store), rows)


def test_of_an_empty_store_there_are_axes_and_no_table(tmp_path):
    found = of(Store(tmp_path))
    assert (found.state, found.codes) == ("waiting", [])
    assert found.counts["sweep/missing"] == found.counts["sweep/cells"] == 6
    assert found.note.startswith("**trials 0/2 done, 0 running; cells 0/6**")
    assert "| method&emsp; | none, simclr |" in found.note
    assert "auroc" not in found.note


def test_what_is_done_and_what_failed_is_counted_and_told(tmp_path):
    store = Store(tmp_path)
    measure(store, CELLS[:4])
    said = {"state": "failed", "reason": "NotFinite: it diverged\nat update 7"}
    store.write(f"progress/{CELLS[3].encoder.id}.json", json.dumps(said).encode())
    found = of(store)
    counts = {"sweep/cells": 6, "sweep/done": 4, "sweep/missing": 2, "sweep/failed": 2}
    assert (found.state, found.counts, found.codes) == ("failed", counts, ["0.0.9", "0.1.0+abc"])
    assert (
        f"- failed: simclr on phantom/cells, `{CELLS[3].encoder.id}`: NotFinite: it" in found.note
    )
    assert "at update 7" not in found.note
    assert "| phantom/cells&emsp; | none&emsp; | 0.750&emsp; | 0.750&emsp; | 0.750 |" in found.note
    measure(store, CELLS[4:])
    assert of(store).state == "finished"


def test_a_long_page_ends_with_a_whole_line_and_says_so(tmp_path):
    store = Store(tmp_path)
    many = Sweep(
        name="t", method=["none", "simclr"], dataset=[f"phantom/{n:03}" for n in range(60)],
        backbone="vit/tiny-14", eval="knn",
    ).cells()  # fmt: skip
    measure(store, many)
    note = of(store, many).note
    assert ROOM - 200 < len(note) <= ROOM
    *_, last, empty, more = note.rstrip().splitlines()
    assert last.startswith("| phantom/")
    assert last.endswith("0.750 |")
    assert (empty, more) == ("", "There is more: `medssl table`.")
