"""How far a sweep is, from what trials have written: nothing is asked of Ray."""

import io
import json
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from medssl import status, watch
from medssl.spec import Sweep, parent
from medssl.store import Store

SWEEP = Sweep(
    name="t",
    method="simclr",
    dataset=["phantom/cells", "phantom/organs"],
    backbone="vit/tiny-14",
    seed=[0, 1],
    epochs=10,
    eval="knn",
    label_fraction=1.0,
)
CELLS = SWEEP.cells()  # cells 0, cells 1, organs 0, organs 1


def say(store, cell, state, epochs=0, seconds=2.0, ago=0.0, **more):
    curve = [{"loss": 5.0, "seconds": seconds, "views_per_s": 1234.0}] * epochs
    said = {"state": state, "curve": curve, "updated": time.time() - ago, **more}
    store.write(f"progress/{cell.encoder.id}.json", json.dumps(said).encode())


def done(store, cell):
    store.write(f"rows/{cell.id}.parquet", b"-")


def shown(found) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(watch.render(found))
    return console.file.getvalue()


def test_the_axes_that_vary_are_the_columns(tmp_path):
    found = status.read(CELLS, Store(tmp_path))
    assert watch.varying(found) == ["method", "dataset", "seed"]
    with_none = replace(SWEEP, method=["none", "simclr"], dataset="phantom/cells")
    assert watch.varying(status.read(with_none.cells(), Store(tmp_path))) == ["method", "seed"]


def test_states_are_told_apart(tmp_path):
    store = Store(tmp_path)
    assert status.read(CELLS, store).states == {"waiting": 4}
    say(store, CELLS[0], "finished", 10)
    done(store, CELLS[0])
    say(store, CELLS[1], "pretraining", 4)
    say(store, CELLS[2], "failed", reason="NotFinite: it diverged\nTraceback ...")
    found = status.read(CELLS, store)
    assert found.states == {"finished": 1, "pretraining": 1, "failed": 1, "waiting": 1}
    assert (found.cells, found.cells_done) == (4, 1)
    text = shown(found)
    assert "trials 1/4 done, 1 running, 1 failed; cells 1/4" in text
    assert "epoch 4/10" in text
    assert "1,234" in text
    assert "NotFinite: it diverged" in text
    assert "Traceback" not in text


def test_an_encoder_of_no_epochs_is_not_said_to_be_at_epoch_0_of_0(tmp_path):
    store = Store(tmp_path)
    (cell,) = replace(SWEEP, method="none", dataset="phantom/cells", seed=0).cells()
    say(store, cell, "pretraining")
    text = shown(status.read([cell], store))
    assert "making the init" in text
    assert "epoch" not in text


def test_a_trial_that_fell_silent_is_waiting_again(tmp_path):
    store = Store(tmp_path)
    say(store, CELLS[0], "pretraining", 1, ago=status.SILENT_S + 1)
    assert status.read(CELLS, store).states == {"waiting": 4}


def test_a_finished_trial_that_is_asked_for_more_is_waiting(tmp_path):
    store = Store(tmp_path)
    say(store, CELLS[0], "finished", 10)
    assert status.read(CELLS[:1], store).states == {"waiting": 1}


def test_time_left_is_epochs_to_go_at_the_pace_of_their_like(tmp_path):
    store = Store(tmp_path)
    assert status.read(CELLS, store).eta_s() is None
    say(store, CELLS[0], "pretraining", 4, seconds=2)  # 6 to go, 2 s each; its twin: 10 of 2 s
    assert status.read(CELLS[:2], store).eta_s() == pytest.approx(6 * 2 + 10 * 2)
    say(store, CELLS[2], "pretraining", 5, seconds=10)  # 5 to go, 10 s each; its twin: 10 of 10 s
    both = (6 * 2 + 10 * 2 + 5 * 10 + 10 * 10) / 2  # two run at a time
    assert status.read(CELLS, store).eta_s() == pytest.approx(both)


def test_time_left_is_of_pretraining_and_says_so(tmp_path):
    store = Store(tmp_path)
    say(store, CELLS[0], "pretraining", 4, seconds=60)
    assert watch.line(status.read(CELLS[:1], store)).endswith("; about 6 min of pretraining left")
    say(store, CELLS[0], "evaluating", 10, seconds=60)  # hours of fine-tuning may follow
    assert watch.line(status.read(CELLS[:1], store)).endswith("cells 0/1")


@pytest.mark.parametrize("state", ["evaluating", "stopped"])
def test_an_encoder_that_ended_early_has_no_epochs_to_go(tmp_path, state):
    store = Store(tmp_path)
    say(store, CELLS[0], state, 4, seconds=2)
    store.write(f"encoders/{CELLS[0].encoder.id}.safetensors", b"-")
    assert status.read(CELLS[:1], store).eta_s() is None
    say(store, CELLS[1], "pretraining", 9, seconds=2)
    found = status.read(CELLS[:2], store)
    assert found.eta_s() == pytest.approx(2 / len(found.of("pretraining", "evaluating")))


def test_what_its_driver_left_behind_is_not_running(tmp_path):
    store = Store(tmp_path)
    say(store, CELLS[0], "pretraining", 4)
    say(store, CELLS[1], "failed", 4, reason="NotFinite")
    status.stop(status.read(CELLS, store), store)
    found = status.read(CELLS, store)
    assert found.states == {"waiting": 3, "failed": 1}
    assert len(found.trials[0].curve) == 4  # what it had learned is still told


def test_a_progress_file_that_cannot_be_read_stops_no_view(tmp_path):
    store = Store(tmp_path)
    store.write(f"progress/{CELLS[0].encoder.id}.json", b'{"state": "pretr')
    assert status.read(CELLS, store).states == {"waiting": 4}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_view_outlives_a_folder_that_is_away_for_a_moment(terminal):
    readings = iter([OSError("stale file handle"), status.Status([])])
    stop = threading.Event()

    def read():
        found = next(readings)
        if isinstance(found, OSError):
            raise found
        stop.set()
        return found

    console = Console(file=io.StringIO(), force_terminal=terminal)
    thread = threading.Thread(target=watch.follow, args=(read, stop, console))
    thread.start()
    thread.join(timeout=30)
    assert stop.is_set()


def test_supervised_inits_are_counted_while_they_are_made(tmp_path):
    store = Store(tmp_path)
    asked = replace(SWEEP, init=["random", "supervised:phantom/xray"])
    cells = asked.cells()
    above = {p.id: p for c in cells if (p := parent(c.encoder))}
    assert len(above) == 2  # a seed each, shared by both datasets
    found = status.read(cells, store)
    assert len(found.trials) == 8
    assert "trials 0/8 done, 0 running, 2 supervised inits to make first; cells 0/8" in shown(found)
    first, second = above
    store.write(f"encoders/{first}.safetensors", b"-")
    said = {"state": "pretraining", "curve": [], "updated": time.time()}
    store.write(f"progress/{second}.json", json.dumps(said).encode())
    found = status.read(cells, store)
    assert "1 supervised init to make first" in shown(found)
    status.stop(found, store)
    assert json.loads(store.read(f"progress/{second}.json"))["state"] == "stopped"
    store.write(f"encoders/{second}.safetensors", b"-")
    assert "to make first" not in shown(status.read(cells, store))
