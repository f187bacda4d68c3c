"""A sweep through Ray, as a user runs it: shared, resumed, killed, extended, and always right."""

import contextlib
import json
import os
import pickle
import re
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import Runs, after_an_epoch, ended
from served import KEYS, Moto

from medssl import results
from medssl import sweep as engine
from medssl.cost import Queue, Weight
from medssl.spec import EncoderSpec, Resources, Sweep, parent
from medssl.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep that nothing disturbed, and what it printed."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"))
    code, out = runs.run()
    assert code == 0, out
    return runs, out


def test_it_ends_with_the_table_the_store_and_the_way_to_the_curves(undisturbed):
    runs, out = undisturbed
    assert results.missing(runs.cells, runs.store) == []
    assert "phantom/lesions" in out
    assert re.search(r"[1-9]\d* (seconds|minutes) in trials", out)
    assert re.search(r"simclr .*\d\.\d{3} ± \d\.\d{3}", out)
    assert str(runs.store.root) in out
    assert "medssl ui --store" in out


def test_a_trial_uses_the_cores_it_was_given(undisturbed):
    runs, _ = undisturbed
    assert set(results.table(runs.store)["threads"].to_pylist()) == {1}


def test_again_starts_nothing(undisturbed):
    runs, _ = undisturbed
    before, values = runs.encoders(), runs.values()
    code, out = runs.run()
    assert code == 0
    assert "8 done, 0 missing" in out
    assert runs.encoders() == before
    assert runs.values() == values


def test_one_mlflow_run_per_encoder_with_its_spec_curves_metrics_and_figures(undisturbed):
    runs, _ = undisturbed
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{runs.store.root}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id])
    (above,) = [run for run in found if "medssl.sweep" in run.data.tags]
    found.remove(above)
    assert above.info.status == "FINISHED"
    assert above.data.metrics["sweep/done"] == len(runs.cells)
    assert "| none&emsp; | " in above.data.tags["mlflow.note.content"]
    encoders = {c.encoder.id: c.encoder for c in runs.cells}
    assert sorted(r.data.tags["medssl.encoder"] for r in found) == sorted(encoders)
    for run in found:
        spec = encoders[run.data.tags["medssl.encoder"]]
        assert run.info.status == "FINISHED"
        assert run.data.params["method"] == spec.method
        assert run.data.params["seed"] == str(spec.seed)
        cell = next(c for c in runs.cells if c.encoder == spec and c.label_fraction == 0.1)
        assert run.data.metrics["knn/auroc:0.1"] == runs.values()[cell.id, "auroc"]
        figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
        assert "figures/label_efficiency.png" in figures
        if spec.method == "simclr":
            assert "figures/learning_curve.png" in figures
            assert run.data.params["temperature"] == "0.2"
            for curve in ("loss", "lr", "spread", "views_per_s", "data_wait"):
                steps = [m.step for m in client.get_metric_history(run.info.run_id, curve)]
                assert steps == [1, 2]


def test_status_and_plan_read_the_store_alone(undisturbed):
    runs, _ = undisturbed
    code, out = runs.run("status")
    assert (code, "trials 4/4 done, 0 running; cells 8/8" in out) == (0, True)
    code, out = runs.run("plan")
    assert "4 encoders, 8 cells, 8 done, 0 missing" in out


@pytest.mark.long
def test_two_parts_at_once_leave_one_table_and_a_second_driver_is_refused(undisturbed, tmp_path):
    runs = Runs(tmp_path, "method='none', seed=range(4)")
    parts = [runs.start("run", "--shard", f"{part}/2") for part in (1, 2)]
    while not runs.store.has("drivers/tiny-1-of-2.json"):
        assert parts[0].poll() is None, parts[0].communicate()
        time.sleep(0.02)
    again = runs.start("run", "--shard", "1/2")
    for process, expected in zip([again, *parts], [2, 0, 0], strict=True):
        code, out = ended(process)
        assert code == expected, out
        assert ("tiny-1-of-2 has a driver already" in out) == (expected == 2)
    shared = undisturbed[0].values().keys() & runs.values().keys()
    assert {undisturbed[0].values()[key] == runs.values()[key] for key in shared} == {True}
    code, out = runs.run()
    assert "8 done, 0 missing" in out
    assert not runs.store.names("drivers", ".json")


@pytest.mark.long
def test_in_a_bucket_it_leaves_the_same_table(undisturbed, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    moto = Moto()
    try:
        runs = Runs(tmp_path, "seed=0", store=moto.address)
        code, out = runs.run()
        assert code == 0, out
        assert "s3://bucket/prefix" in out
        assert len(runs.values()) == len(undisturbed[0].values()) / 2
        assert runs.values().items() <= undisturbed[0].values().items()
        code, out = runs.run()
        assert (code, "4 done, 0 missing" in out) == (0, True), out
        database = next((tmp_path / "cache" / "medssl" / "stores").glob("*/mlflow.db"))
        assert database.stat().st_size
    finally:
        moto.process.kill()
        moto.process.wait()


def test_a_new_label_fraction_starts_no_pretraining(undisturbed):
    runs, _ = undisturbed
    before = runs.encoders()
    runs.change("label_fraction=[0.1, 0.5, 1.0]")
    code, out = runs.run()
    assert code == 0, out
    assert "12 cells, 8 done, 4 missing" in out
    assert "encoders to make" not in out
    assert runs.encoders() == before
    assert results.missing(runs.cells, runs.store) == []
    runs.change("")


def test_a_diverged_trial_is_named_and_the_others_are_done(tmp_path):
    runs = Runs(tmp_path, "learning_rate=[1e-3, 1e30], seed=0, epochs=1")
    code, out = runs.run()
    assert code == 1
    assert "failed simclr on phantom/lesions" in out
    assert "NotFinite" in out
    assert "lower learning_rate" in out
    log = Path(re.search(r"log: (\S+\.log)", out)[1])
    assert "Traceback" in log.read_text()
    assert "2 of 6 cells have no result." in out
    left = results.missing(runs.cells, runs.store)
    assert {c.encoder.learning_rate for c in left} == {1e30}


def test_ctrl_c_ends_it_and_the_next_run_goes_on(tmp_path):
    runs = Runs(tmp_path, "epochs=30, seed=0")
    process = runs.start()
    after_an_epoch(runs, process)
    process.send_signal(signal.SIGINT)
    code, out = ended(process)
    assert code == 130, out
    assert "stopping; what is finished is kept" in out
    assert "It was stopped; run the same again to go on." in out
    assert not list((runs.store.root / "tune").iterdir())
    assert "failed" not in out
    assert "Traceback" not in out
    assert runs.store.names("checkpoints", ".pt")


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_the_sweep_goes_on_by_itself(tmp_path):
    runs = Runs(tmp_path, "epochs=6, seed=0")
    process = runs.start()
    os.kill(after_an_epoch(runs, process)["pid"], signal.SIGKILL)
    code, out = ended(process)
    assert code == 0, out
    assert results.missing(runs.cells, runs.store) == []


@pytest.mark.long
def test_a_preempted_worker_leaves_a_checkpoint_and_costs_no_retry(tmp_path):
    rare = "epochs=10, seed=0, method=[SIMCLR], resources=Resources(cpu=1, retries=0)"
    runs = Runs(tmp_path, rare)
    process = runs.start()
    victim = after_an_epoch(runs, process)
    assert not runs.store.names("checkpoints", ".pt")  # one in two minutes
    os.kill(victim["pid"], signal.SIGTERM)
    code, out = ended(process)
    assert code == 0, out
    assert results.missing(runs.cells, runs.store) == []
    log = runs.store.read(f"logs/{victim['encoder']}.log").decode()
    step, steps, rest = re.search(r"preempted after step (\d+) of (\d+)(.*)", log, re.S).groups()
    epochs_before = int(step) * 10 // int(steps)
    assert int(re.search(r"epoch (\d+):", rest)[1]) >= epochs_before >= 1


@pytest.mark.long
def test_a_worker_that_dies_once_too_often_is_named(tmp_path):
    once = "epochs=30, seed=0, resources=Resources(cpu=1, retries=0, checkpoint_s=1)"
    runs = Runs(tmp_path, once)
    process = runs.start()
    victim = after_an_epoch(runs, process)
    os.kill(victim["pid"], signal.SIGKILL)
    code, out = ended(process)
    assert code == 1, out
    assert "failed simclr on phantom/lesions" in out
    assert "failed none" not in out
    assert f"{victim['encoder']}.log" in out
    assert {c.encoder.id for c in results.missing(runs.cells, runs.store)} == {victim["encoder"]}


@pytest.mark.parametrize(("share", "capped"), [(0.25, [0.25]), (1.0, []), (2.0, [])])
def test_a_trial_has_its_share_of_a_gpus_memory_and_no_more(tmp_path, monkeypatch, share, capped):
    import torch

    from medssl import trial

    seen, cell = [], CHILDREN[0]
    cuda = {"is_available": lambda: True, "current_device": lambda: 0}
    cuda["set_per_process_memory_fraction"] = lambda of, device: seen.append(of)
    for name, does in cuda.items():
        monkeypatch.setattr(torch.cuda, name, does)
    monkeypatch.setattr(trial, "run", lambda cells, store, here: seen.append(here.device.type))
    monkeypatch.setattr(engine, "_of_all", lambda work: {cell.encoder.id: [cell]})
    job = engine.Job(str(tmp_path), None, None, "test", Resources(), "")
    assert engine._done(cell.encoder.id, share, job, [None])["failed"] == ""
    assert seen == [*capped, "cuda"]


@pytest.mark.parametrize(
    ("nodes", "cpu", "gpu", "slots"),
    [
        ([{"CPU": 4.0}], 1, 0, 4),
        ([{"CPU": 16.0, "GPU": 2.0}], 4, 0.5, 4),
        ([{"CPU": 3.0}, {"CPU": 3.0}, {}], 2, 0, 2),  # no trial lies across two nodes
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}], 4, 1, 1),
        ([{"CPU": 1.0}, {"CPU": 1.0}], 2, 0, 0),
    ],
)
def test_as_many_trials_run_as_fit(nodes, cpu, gpu, slots):
    assert engine._slots(nodes, cpu, gpu) == slots


def test_trials_are_given_while_their_shares_of_gpus_fit(nodes):
    nodes += [node(CPU=8.0, GPU=1.0)]
    gpus = {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.2}
    queue = Queue(
        {id: Weight(cost, cost, True) for id, cost in zip("abcd", (9, 8, 7, 6), strict=True)}, {}
    )
    search = engine._searcher(queue, gpus, engine._room(Resources(), gpus.values(), print), ())
    assert search.suggest("1") == {"encoder": "a", "gpu": 1.0}
    assert search.suggest("2") is None
    search.on_trial_complete("1", {"failed": ""})
    assert [search.suggest("2")["encoder"], search.suggest("3")["encoder"]] == ["b", "c"]
    assert search.suggest("4") is None
    search.on_trial_complete("2", {"failed": ""})
    assert search.suggest("4")["encoder"] == "d"
    assert engine._slots([{"CPU": 8.0, "GPU": 1.0}], 1, 0.2) == 5


def test_shares_of_gpus_add_up_to_a_whole_one(nodes):
    nodes += [node(CPU=8.0, GPU=1.0)]
    gpus = {"a": 0.05, "b": 0.5, "c": 0.45}  # 1 - (0.05 + 0.5) < 0.45
    queue = Queue({id: Weight(1, 1, True) for id in gpus}, {})
    search = engine._searcher(queue, gpus, engine._room(Resources(), gpus.values(), print), ())
    assert [search.suggest(id)["encoder"] for id in gpus] == ["a", "b", "c"]


def test_one_trial_waits_for_a_gpu_where_all_nodes_are_gone(nodes):
    nodes += [node(CPU=8.0, GPU=1.0)]
    gpus = {"a": 1.0, "b": 1.0}
    room = engine._room(Resources(), gpus.values(), print)
    nodes.clear()
    search = engine._searcher(Queue({id: Weight(1, 1, True) for id in gpus}, {}), gpus, room, ())
    assert [search.suggest("1"), search.suggest("2")] == [{"encoder": "a", "gpu": 1.0}, None]


def test_where_gpus_are_to_come_a_trial_takes_one(begun, monkeypatch):
    monkeypatch.setenv("MEDSSL_NODES", json.dumps([{"CPU": 8, "GPU": 1.0, "most": 1}]))
    said = []
    begun(made, say=said.append)
    assert any("a trial takes 1 and 1; at most 1 at a time" in line for line in said)


def test_a_trial_is_charged_from_when_it_has_a_slot():
    clock = [0.0]
    queue = Queue({"a": Weight(1, 1, True)}, {}, now=lambda: clock[0])
    listener = engine._listener(queue)
    assert queue.next() == "a"
    clock[0] = 100
    listener.on_trial_start(0, [], SimpleNamespace(config={"encoder": "a", "gpu": 0.0}))
    clock[0] = 103
    queue.ended("a", ok=True)
    assert queue.spent_s == 3
    assert type(pickle.loads(pickle.dumps(listener))).__name__ == "Callback"


def test_of_a_trial_that_has_ended_tune_keeps_little():
    from ray.tune.experiment import Trial

    trial = Trial("any", stub=True)
    trial.update_last_result({"failed": "", "training_iteration": 1, **dict.fromkeys("abcdef", 1)})
    before = len(trial.run_metadata.get_json_state())
    engine._listener(None).on_trial_complete(0, [trial], trial)
    after = len(trial.run_metadata.get_json_state())
    assert after < before / 3
    assert trial.last_result["failed"] == ""


@pytest.mark.parametrize("failures", [2, 3])
def test_ray_is_started_again_where_the_machine_was_too_busy(monkeypatch, failures):
    import ray

    attempts = []

    def init(**_):
        attempts.append(1)
        if len(attempts) <= failures:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    if failures == 3:
        with pytest.raises(ValueError, match="Ray did not start in 3 attempts"):
            engine._connect()
    else:
        engine._connect()
    assert len(attempts) == 3


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "127.0.0.1:{port}",
            r"no Ray at RAY_ADDRESS=127.0.0.1:\d+ \(Connection refused\): start it",
        ),
        ("ray://127.0.0.1:{port}", "(Connection refused)"),
        ("nowhere.invalid:6379", "no Ray at RAY_ADDRESS=nowhere.invalid:6379 "),
        (
            "rubbish",
            r"\(Invalid address format: rubbish\): start it there, name the head of one as",
        ),
        ("http://127.0.0.1:8265", r"\(Invalid Ray address: 'http://127.0.0.1:8265'\): start it"),
    ],
)
def test_a_cluster_that_is_not_there_is_a_sentence(monkeypatch, capfd, address, sentence):
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=port))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(engine, "PATIENCE_S", 0.2)
    with pytest.raises(ValueError, match=sentence):
        engine._connect()
    assert capfd.readouterr() == ("", "")  # of Ray's own


def test_a_head_that_comes_up_late_is_waited_for():
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        threading.Timer(1, late.listen).start()
        assert engine._silent(f"127.0.0.1:{late.getsockname()[1]}") == ""


def test_a_ray_that_cannot_start_here_is_a_sentence(monkeypatch):
    import ray

    def init(**_):
        raise PermissionError(13, "Permission denied", "/full/ray")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        ValueError, match=r"\(PermissionError: .*'/full/ray'\): its folder, RAY_TMP"
    ):
        engine._connect()


CHILDREN = Sweep(
    name="t",
    method=["none", "simclr"],
    dataset="phantom/lesions",
    backbone="vit/tiny-14",
    init=["random", "supervised:phantom/xray"],
    image_size=28,
    eval="knn",
    label_fraction=1.0,
).cells()
ABOVE = next(parent(c.encoder) for c in CHILDREN if c.encoder.init != "random")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """`run` of cells with a Ray of one slot that does nothing but `ends(id, work)`: which trials
    were begun, in order, and what was lost."""
    import ray

    monkeypatch.setattr(engine, "_connect", lambda: None)
    monkeypatch.setattr(engine, "_headed", contextlib.nullcontext)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node(CPU=16.0)])
    store = Store(tmp_path)

    def run(ends, **more):
        given = []

        def fit(trials, gpus, queue, job, room):
            found = {}
            while (id := queue.next()) is not queue.END:
                given.append(id)
                queue.started(id)
                failed = ends(id, trials.work[id], store)
                found[id] = SimpleNamespace(error=None, metrics={"failed": failed})
                queue.ended(id, ok=not failed)
            return found

        monkeypatch.setattr(engine, "_fit", fit)
        missing = results.missing(CHILDREN, store)
        more = {"say": lambda _: None} | more
        lost = engine.run(missing, store, None, "test", Resources(), **more)
        return given, lost

    return run


def made(id, work, store) -> str:
    for cell in [] if isinstance(work, EncoderSpec) else work:
        store.write(f"rows/{cell.id}.parquet", b"-")
    store.write(f"encoders/{id}.safetensors", b"-")
    return ""


ALL = {c.encoder.id for c in CHILDREN}
OWN = {c.encoder.id for c in CHILDREN if c.encoder.init != "random"}  # start from ABOVE


def test_a_supervised_init_is_made_once_and_before_all_that_start_from_it(begun):
    given, lost = begun(made)
    assert sorted(given) == sorted([ABOVE.id, *ALL])
    assert given.index(ABOVE.id) < min(map(given.index, OWN))
    assert lost == {}


def test_an_init_that_is_there_is_not_made_again(begun, tmp_path):
    Store(tmp_path).write(f"encoders/{ABOVE.id}.safetensors", b"-")
    given, _ = begun(made)
    assert set(given) == ALL


def test_an_init_is_not_made_for_encoders_that_are_there(begun, tmp_path):
    for cell in CHILDREN:
        Store(tmp_path).write(f"encoders/{cell.encoder.id}.safetensors", b"-")
    given, _ = begun(made)
    assert set(given) == ALL


def test_what_starts_from_an_init_that_failed_is_not_started_and_says_why(begun):
    def ends(id, work, store):
        return "ValueError: no such labels" if id == ABOVE.id else made(id, work, store)

    given, lost = begun(ends)
    assert set(given) == {ABOVE.id} | ALL - OWN
    why = "the encoder of its init was not made: ValueError: no such labels"
    assert lost == dict.fromkeys(OWN, f"{why} (logs/{ABOVE.id}.log)")


def test_results_that_are_not_seen_and_trials_beyond_a_budget_are_named(begun, tmp_path):
    given, lost = begun(lambda id, work, store: "")
    assert set(lost) == ALL
    assert all("its results are not here: do all nodes see" in why for why in lost.values())
    given, lost = begun(made, budget_s=0)
    assert given == []
    assert lost == dict.fromkeys(ALL, engine.BUDGET)


def test_what_an_init_left_of_a_budget_is_not_called_failed(begun, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(engine, "Queue", partial(engine.Queue, now=lambda: clock[0]))

    def ends(id, work, store):
        clock[0] += 10 * (id == ABOVE.id)
        return made(id, work, store)

    monkeypatch.setattr(engine, "weight", lambda cells, spec, *_: Weight(1, 1, True))
    given, lost = begun(ends, budget_s=5)
    assert given == [ABOVE.id]
    assert lost == dict.fromkeys(ALL, engine.BUDGET)


def test_after_tune_has_ended_ctrl_c_is_answered_by_an_exception(tmp_path, monkeypatch):
    """Its handler of a first wave would swallow the signal that the second is to end by."""
    import ray
    from ray import tune

    monkeypatch.setattr(ray, "put", lambda work: work)  # which would start a cluster

    class Tuner:
        def __init__(self, *_, **__):
            pass

        def fit(self):
            signal.signal(signal.SIGUSR1, lambda *_: None)
            return []

    monkeypatch.setattr(tune, "Tuner", Tuner)
    job = engine.Job(str(tmp_path), None, None, "test", Resources(), "")
    with engine._ctrl_c(lambda _: None) as asked:
        engine._fit(engine.Trials({}, {}, set()), {}, None, job, lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert asked.is_set()


@pytest.fixture
def nodes(monkeypatch) -> list[dict]:
    """What Ray says of its nodes: to be filled."""
    import ray

    found: list[dict] = []
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(engine, "LOOK_S", 0)
    return found


def node(**has: float) -> dict:
    return {"Alive": True, "Resources": has}


def test_a_trial_that_fits_nowhere_is_refused(nodes):
    nodes += [node(CPU=4.0), node(CPU=4.0), node()]
    with pytest.raises(ValueError, match="lower cpu and gpu in the sweep's Resources"):
        engine._room(Resources(cpu=1), [0.5, 1], lambda _: None)
    with pytest.raises(ValueError, match="no node of Ray has them"):
        engine._room(Resources(cpu=8), [0], lambda _: None)
    nodes += [node(CPU=4.0, GPU=1.0)]
    with pytest.raises(ValueError, match="takes 1 cores and 2 GPUs"):
        engine._room(Resources(cpu=1), [0.5, 2], lambda _: None)


def test_room_grows_and_shrinks_with_the_nodes(nodes):
    nodes += [node(CPU=2.0)]
    said: list[str] = []
    room = engine._room(Resources(), [0], said.append)
    assert (room().trials, said) == (2, [])
    nodes += [node(CPU=4.0)]
    assert (room().trials, room().trials) == (6, 6)
    assert said == ["Ray's nodes have changed: at most 6 trials at a time"]
    for each in nodes:
        each["Alive"] = False
    assert room().trials == 1  # which asks an autoscaler for a node
    to_come = engine._room(Resources(concurrent=5), [1], said.append)
    assert to_come().trials == 5


def test_nodes_that_may_be_added_count_as_if_they_were_there(nodes, monkeypatch):
    nodes += [node()]  # a head
    groups = [{"CPU": 8, "GPU": 1.0, "most": 3}, {"CPU": 8, "GPU": 1.0, "most": 1}]
    monkeypatch.setenv("MEDSSL_NODES", json.dumps(groups))
    assert len(engine._to_come()) == 4
    room = engine._room(Resources(cpu=4), [1], print)
    assert room() == engine.Room(4, 4)
    assert engine._room(Resources(cpu=4), [0.5, 1], print)() == engine.Room(8, 4)
    nodes += [node(CPU=8.0, GPU=8.0), node(CPU=32.0, GPU=8.0)]  # more than was promised
    assert engine._room(Resources(cpu=4), [1], print)() == engine.Room(10, 16)
    assert engine._room(Resources(cpu=1), [0, 1], print)().gpus == 16
    nodes.pop()
    with pytest.raises(ValueError, match="takes 9 cores and 1 GPUs"):
        engine._room(Resources(cpu=9), [1], print)
    nodes[:] = [node(CPU=64.0, GPU=1.0)]  # more trials, but none of the largest
    monkeypatch.setenv("MEDSSL_NODES", json.dumps([{"CPU": 16, "GPU": 4, "most": 1}]))
    assert engine._room(Resources(cpu=1), [0, 4], print)().gpus == 4
    monkeypatch.setenv("MEDSSL_NODES", "")
    assert engine._to_come() == []


def test_a_tracking_server_that_is_down_loses_nothing(tmp_path):
    runs = Runs(tmp_path, "seed=0, epochs=1", env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    code, out = runs.run()
    assert code == 0, out
    assert results.missing(runs.cells, runs.store) == []
    assert out.count("MLflow at http://127.0.0.1:9 is behind") == 1  # said once, and at the end
    runs.env.pop("MLFLOW_TRACKING_URI")
    code, out = runs.run()  # it is back: what it missed is sent
    assert code == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{runs.store.root}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    runs_of = [run for run in found if "medssl.encoder" in run.data.tags]
    assert len(runs_of) == 2
    assert all("knn/auroc:1" in run.data.metrics for run in runs_of)


def test_absent_data_stops_it_before_anything_is_started(tmp_path):
    runs = Runs(tmp_path, 'dataset="medmnist/chestmnist"')
    runs.env |= {"MEDMNIST_ROOT": str(tmp_path / "data"), "http_proxy": "http://127.0.0.1:9"}
    runs.env |= {"https_proxy": "http://127.0.0.1:9"}
    code, out = runs.run()
    assert code == 2
    assert "chestmnist.npz" in out.replace("\n", "")
    assert "Nothing was started." in out
    assert not runs.store.names("progress", ".json")
