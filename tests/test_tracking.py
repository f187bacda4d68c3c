"""MLflow is a view of the store: never a duplicate, never in the way, caught up when it is back."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from mlflow import MlflowClient

from medssl import Search, results, search, status, tracking
from medssl.spec import Sweep
from medssl.store import Store

SWEEP = Sweep(
    name="t", method="simclr", dataset="phantom/cells", backbone="vit/tiny-14", epochs=4, eval="knn"
)
CELLS = SWEEP.cells()
ID = CELLS[0].encoder.id
OVERVIEW = tracking.Overview("pretraining", {"sweep/done": 0}, ["0.1.0+abc"], "one of two")


def say(store, epochs, state="pretraining", reason=""):
    curve = [{"loss": 5.0 - e, "lr": 0.1} for e in range(epochs)]
    said = {"state": state, "curve": curve, "updated": time.time(), "reason": reason}
    store.write(f"progress/{ID}.json", json.dumps(said).encode())


def measure(store, cell, value=0.75):
    metrics = {"auroc": value, "accuracy": 0.5, "recall_0": 1.0}
    results.save(store, cell, metrics, {"scores": np.zeros((2, 2), np.float32)}, {})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def server(store):
    """A mirror of the store on SQLite, and a client to see what arrived."""

    def mirror(figures=lambda trial: [("a.png", b"png")], overview=lambda: OVERVIEW):
        return tracking.Mirror("t", store, figures, overview, "0.1.0+abc")

    return mirror, MlflowClient(tracking_uri=tracking.uri(store))


def runs(client, tag="medssl.encoder"):
    found = client.get_experiment_by_name("t")
    return [r for r in client.search_runs([found.experiment_id]) if tag in r.data.tags]


def losses(client, run):
    history = client.get_metric_history(run.info.run_id, "loss")
    return [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)]


def test_a_curve_goes_on_where_it_was_also_in_another_process(store, server):
    make, client = server
    mirror = make()
    say(store, 2)
    assert mirror.sync(status.read(CELLS, store))
    assert mirror.sync(status.read(CELLS, store))  # nothing new: nothing sent
    say(store, 3)
    assert make().sync(status.read(CELLS, store))  # another driver
    (run,) = runs(client)
    assert losses(client, run) == [(1, 5.0), (2, 4.0), (3, 3.0)]
    assert run.info.status == "RUNNING"
    assert run.data.params["learning_rate"] == "0.0003"
    assert run.data.params["temperature"] == "0.2"
    assert run.data.params["version"] == str(CELLS[0].encoder.version)
    assert run.data.params["method_version"] == str(dict(CELLS[0].encoder.recipe)["version"])
    assert run.data.tags["medssl.code"] == "0.1.0+abc"


def test_metrics_of_finished_cells_arrive_once_with_their_fraction(store, server):
    make, client = server
    mirror = make()
    say(store, 4)
    measure(store, CELLS[0], 0.6)
    mirror.sync(status.read(CELLS, store))
    for cell in CELLS[1:]:
        measure(store, cell, 0.9)
    say(store, 4, "finished")
    mirror.sync(status.read(CELLS, store))
    make().sync(status.read(CELLS, store))
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["knn/auroc:0.01"] == 0.6
    assert run.data.metrics["knn/auroc:1"] == 0.9
    assert "knn/recall_0:1" not in run.data.metrics  # the table has it
    history = client.get_metric_history(run.info.run_id, "knn/auroc:0.01")
    assert len(history) == 1
    assert [f.path for f in client.list_artifacts(run.info.run_id, "figures")] == ["figures/a.png"]


@pytest.mark.parametrize("spoke", [0, 2])
def test_a_trial_whose_rows_come_before_its_last_word_has_its_whole_curve(store, server, spoke):
    """A progress file is written every few seconds: rows of a short evaluation are there first."""
    make, client = server
    mirror = make()
    if spoke:
        say(store, spoke, "evaluating")
    for cell in CELLS:
        measure(store, cell)
    assert mirror.sync(status.read(CELLS, store))
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    other = make()
    assert other.sync(status.read(CELLS, store))
    say(store, 4, "finished")
    for one in mirror, other, make():
        assert one.sync(status.read(CELLS, store))
    assert losses(client, run) == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]
    assert len(client.list_artifacts(run.info.run_id, "figures")) == 1


def test_a_failure_is_marked_with_its_reason(store, server):
    make, client = server
    say(store, 1, "failed", "NotFinite: it diverged")
    make().sync(status.read(CELLS, store))
    (run,) = runs(client)
    assert run.info.status == "FAILED"
    assert run.data.tags["medssl.reason"] == "NotFinite: it diverged"


def test_nothing_is_raised_one_warning_is_given_and_later_all_of_it_arrives(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mirror = tracking.Mirror("t", store, lambda trial: [], lambda: OVERVIEW, "")
    say(store, 2)
    with pytest.warns(UserWarning, match="http://127.0.0.1:9 is behind") as warned:
        assert not mirror.sync(status.read(CELLS, store))
    mirror._silent_until = 0
    assert not mirror.sync(status.read(CELLS, store))
    assert len(warned) == 1
    assert mirror.trouble
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # back, in the shape of SQLite
    mirror._silent_until = 0
    assert mirror.sync(status.read(CELLS, store))
    assert not mirror.trouble
    client = MlflowClient(tracking_uri=tracking.uri(store))
    assert len(losses(client, runs(client)[0])) == 2


def test_after_a_failure_the_server_is_left_alone_for_a_while(store, monkeypatch):
    mirror = tracking.Mirror("t", store, lambda trial: [], lambda: OVERVIEW, "")
    asked = []

    def fails():
        asked.append(1)
        raise ConnectionError("no")

    monkeypatch.setattr(mirror, "_connect", fails)
    with pytest.warns(UserWarning, match="is behind"):
        mirror.sync(status.read(CELLS, store))
    mirror.sync(status.read(CELLS, store))
    assert len(asked) == 1


def test_figures_that_fail_do_not_reach_the_caller(store, server):
    make, _ = server

    def broken(trial):
        raise RuntimeError("no ink")

    for cell in CELLS:
        measure(store, cell)
    say(store, 4, "finished")
    with pytest.warns(UserWarning, match="no ink"):
        assert not make(broken).sync(status.read(CELLS, store))


def test_a_failure_that_was_mended_leaves_no_reason(store, server):
    make, client = server
    say(store, 1, "failed", "OSError: disk full")
    make().sync(status.read(CELLS, store))
    for cell in CELLS:
        measure(store, cell)
    say(store, 4, "finished")
    make().sync(status.read(CELLS, store))
    (run,) = runs(client)
    assert (run.info.status, run.data.tags["medssl.reason"]) == ("FINISHED", "")


def test_figures_of_a_finished_run_are_drawn_once(store, server):
    make, _ = server
    drawn = []

    def figures(trial):
        drawn.append(trial.spec.id)
        return [("a.png", b"-")]

    for cell in CELLS:
        measure(store, cell)
    say(store, 4, "finished")
    for _ in range(2):  # the second driver finds nothing new
        make(figures).sync(status.read(CELLS, store))
    assert len(drawn) == 1


def test_a_broken_row_file_keeps_back_its_own_run_alone(store, server):
    make, _ = server
    for cell in CELLS:
        measure(store, cell)
    say(store, 4, "finished")
    store.write(f"rows/{CELLS[0].id}.parquet", b"torn")
    mirror = make()
    assert not mirror.sync(status.read(CELLS, store))
    assert "cannot be read" in mirror.trouble


def test_settings_that_name_sets_are_names_that_the_server_takes(store, server):
    make, client = server
    sets = [f"medmnist/{a}mnist+{b}mnist" for a in "abcdefghijk" for b in "xyz"]
    told = [{"far": ["phantom/xray"]}, {"far": sets}, {"far": sets[1:], "ood_pool": "all"}]
    evals = [("ood", settings) for settings in told]
    given = {"name": "t", "method": "simclr", "dataset": "phantom/cells", "epochs": 4}
    sweep = Sweep(**given, backbone="vit/tiny-14", eval=evals, label_fraction=1.0)
    cells = sweep.cells()
    for cell, value in zip(cells, (0.1, 0.2, 0.3), strict=True):
        measure(store, cell, value)
    assert make().sync(status.read(cells, store))
    (run,) = runs(client)
    found = {k: v for k, v in run.data.metrics.items() if k.startswith("ood/auroc")}
    assert found.pop("ood/auroc:1 far phantom-xray") == 0.1
    assert sorted(found.values()) == [0.2, 0.3]
    assert {name.partition(" sets ")[0] for name in found} == {
        "ood/auroc:1 far 33",
        "ood/auroc:1 far 32",
    }


def test_another_driver_finds_all_runs_in_a_few_requests(store, server, monkeypatch):
    make, client = server
    cells = replace(SWEEP, seed=range(5), label_fraction=1.0).cells()
    for cell in cells:
        measure(store, cell)
    assert make().sync(status.read(cells, store))
    asked, search = [], MlflowClient.search_runs

    def counted(self, *arguments, **named):
        asked.append(named)
        return search(self, *arguments, **named)

    monkeypatch.setattr(tracking, "PAGE", 2)
    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    assert make().sync(status.read(cells, store))
    assert len(asked) == 3  # of five runs and the one above them
    monkeypatch.undo()
    assert len(runs(client)) == 5


def test_of_two_runs_of_one_encoder_the_older_stays_and_has_all_of_it(store, server):
    """As a request leaves behind that was sent again, or two drivers at one moment."""
    make, client = server
    say(store, 2)
    make().sync(status.read(CELLS, store))
    (old,) = runs(client)
    for made in (old.data.tags["medssl.made"] + "1", old.data.tags["medssl.made"][:-1]):
        tags = {"medssl.encoder": ID, "medssl.made": made}
        client.create_run(old.info.experiment_id, tags=tags)
    assert len(runs(client)) == 3
    for cell in CELLS:
        measure(store, cell)
    say(store, 4, "finished")
    assert make().sync(status.read(CELLS, store))
    (run,) = runs(client)
    assert run.data.tags["medssl.made"] == old.data.tags["medssl.made"][:-1]
    assert losses(client, run) == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]
    assert run.data.params["learning_rate"] == "0.0003"
    assert run.info.status == "FINISHED"


def test_a_request_that_was_sent_again_leaves_one_run(store, server, monkeypatch):
    make, client = server
    create = MlflowClient.create_run

    def twice(*asked):
        create(*asked)  # whose answer did not come
        return create(*asked)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    say(store, 2)
    assert make().sync(status.read(CELLS, store))
    (run,), (above,) = runs(client), runs(client, "medssl.sweep")
    assert losses(client, run) == [(1, 5.0), (2, 4.0)]
    assert run.data.tags["mlflow.parentRunId"] == above.info.run_id


def test_an_experiment_that_another_driver_makes_meanwhile_is_taken(store, server, monkeypatch):
    make, client = server
    say(store, 2)
    assert make().sync(status.read(CELLS, store))
    look, asked = MlflowClient.get_experiment_by_name, []

    def late(*given):
        asked.append(given)
        return look(*given) if asked[1:] else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert make().sync(status.read(CELLS, store))
    assert len(runs(client)) == 1


def test_what_is_sent_twice_is_there_once(store, server):
    make, client = server
    say(store, 3)
    first = make()
    first.sync(status.read(CELLS, store))
    (known,) = first._runs.values()
    known.epochs = 0  # as another that looked before the first had sent it
    time.sleep(0.01)
    assert first.sync(status.read(CELLS, store))
    (run,) = runs(client)
    assert losses(client, run) == [(1, 5.0), (2, 4.0), (3, 3.0)]


def test_a_request_holds_whole_epochs(store, server, monkeypatch):
    make, _ = server
    monkeypatch.setattr(tracking, "BATCH", 5)
    sent, send = [], MlflowClient.log_batch

    def kept(self, run_id, metrics=(), params=(), tags=()):
        sent.append([m.step for m in metrics if m.key in ("loss", "lr")])
        return send(self, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", kept)
    say(store, 4)
    make().sync(status.read(CELLS, store))
    assert sent[:2] == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_of_a_finished_run_another_driver_asks_nothing(store, server, monkeypatch):
    make, _ = server
    for cell in CELLS:
        measure(store, cell)
    say(store, 4, "finished")
    assert make().sync(status.read(CELLS, store))
    for name in ("get_metric_history", "create_run", "set_terminated", "log_artifact"):
        monkeypatch.delattr(MlflowClient, name)
    monkeypatch.delattr(results, "table")
    assert make().sync(status.read(CELLS, store))


def test_above_the_runs_stands_one_that_tells_of_the_whole_sweep(store, server, monkeypatch):
    make, client = server
    told = [tracking.Overview("pretraining", {"sweep/done": 1}, ["0.0.9", "0.1.0+abc"], "# one")]
    mirror = make(overview=lambda: told[-1])
    say(store, 2)
    mirror.sync(status.read(CELLS, store))
    (above,) = runs(client, "medssl.sweep")
    (run,) = runs(client)
    assert run.data.tags["mlflow.parentRunId"] == above.info.run_id
    assert above.info.status == "RUNNING"
    assert above.data.tags["mlflow.note.content"] == "# one"
    assert above.data.tags["medssl.code"] == "0.0.9, 0.1.0+abc"
    told.append(told[0]._replace(state="failed", counts={"sweep/done": 2}))
    mirror.sync(status.read(CELLS, store))  # too soon to be told again
    (above,) = runs(client, "medssl.sweep")
    assert above.data.metrics == {"sweep/done": 1}
    make(overview=lambda: told[-1]).sync(status.read(CELLS, store), last=True)
    (above,) = runs(client, "medssl.sweep")
    assert (above.info.status, above.data.metrics) == ("FAILED", {"sweep/done": 2})


def test_runs_of_before_there_were_sweeps_are_put_below_theirs(store, server):
    make, client = server
    say(store, 2)
    make().sync(status.read(CELLS, store))
    (above,) = runs(client, "medssl.sweep")
    client.delete_run(above.info.run_id)  # as if it had never been
    make().sync(status.read(CELLS, store))
    (again,) = runs(client, "medssl.sweep")
    (run,) = runs(client)
    assert again.info.run_id != above.info.run_id
    assert run.data.tags["mlflow.parentRunId"] == again.info.run_id


def test_a_searched_run_has_what_was_chosen_and_a_diverged_point_has_failed(store, server):
    make, client = server
    chosen = {"learning_rate": 0.03, "weight_decay": 0.001}
    cell = replace(SWEEP, search=Search(epochs=2), learning_rate=3e-4).cells()[0]
    mirror, point = make(), search.Searches(store).missing(cell.encoder)[0]
    assert mirror.sync(status.read([cell], store))
    store.write(search.diverged(point.encoder.id), b"not finite")
    said = {"state": "failed", "curve": [], "updated": 1, "reason": "NotFinite"}
    store.write(f"progress/{point.encoder.id}.json", json.dumps(said).encode())
    results.save(store, cell, {"auroc": 0.75}, {}, chosen)
    assert mirror.sync(status.read([cell], store))
    by_id = {run.data.tags["medssl.encoder"]: run for run in runs(client)}
    run = by_id[cell.encoder.id]
    assert (run.data.params["learning_rate"], run.data.params["weight_decay"]) == ("0.03", "0.001")
    assert run.data.params["search"] == "grid epochs 2"
    failed = by_id[point.encoder.id]
    assert failed.info.status == "FAILED"
    assert failed.data.params["learning_rate"] == "0.3"
    (again,) = status.read([cell], store).points[:1]
    assert mirror._whole(again)
