"""A sweep on clusters whose nodes die, join, and come when they are needed, as its user runs it."""

import re
import sys
import time

import pytest
import torch
from clusters import Cluster
from runs import Runs, ended

from medssl import trial

GRID = "method=[SIMCLR], seed=[0, 1, 2], epochs=12, train_images=128, batch_size=64"  # 3 trials
TWO = f"{GRID}, resources=Resources(cpu=1, concurrent=2, checkpoint_s=1)"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and /proc of Linux"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    """The values of GRID, without Ray."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"), GRID)
    for encoder in dict.fromkeys(cell.encoder for cell in runs.cells):
        mine = [cell for cell in runs.cells if cell.encoder == encoder]
        trial.run(mine, runs.store, trial.Here(torch.device("cpu")))
    return runs.values()


@pytest.fixture(scope="module")
def cluster():
    """A head, and the nodes that tests add."""
    made = Cluster()
    yield made
    made.end()


@pytest.fixture(scope="module")
def autoscaled():
    """A head whose autoscaler adds two nodes at most."""
    made = Cluster(most=2)
    yield made
    made.end()


def test_a_node_that_joins_is_used(cluster, undisturbed, tmp_path):
    have(cluster, 1)
    runs = Runs(tmp_path, GRID, cluster.env)
    process = runs.start()
    [first] = where(runs, cluster, process, nodes=1)
    cluster.add()
    both = where(runs, cluster, process, nodes=2)
    code, out = ended(process)
    assert code == 0, out
    assert first in both
    assert len(both) == 2
    assert "Ray's nodes have changed: at most 2 trials at a time" in out
    assert runs.values() == undisturbed


def test_a_trial_whose_node_dies_goes_on_elsewhere_from_its_checkpoint(
    cluster, undisturbed, tmp_path
):
    have(cluster, 2)
    runs = Runs(tmp_path, GRID, cluster.env)
    process = runs.start()
    victim = with_a_checkpoint(runs, process)
    cluster.kill(cluster.node_of(victim["pid"]))
    code, out = ended(process)
    assert code == 0, out
    assert runs.values() == undisturbed
    log = runs.store.read(f"logs/{victim['encoder']}.log").decode()
    _, _, after = re.split(r"; on \S+, pid \d+\n", log)
    assert int(re.search(r"epoch (\d+):", after)[1]) >= len(victim["curve"]) > 1
    [said] = [said for said in runs.progress() if said["encoder"] == victim["encoder"]]
    assert (said["ended"], "killed" in said["last"]) == (1, True)


def test_the_autoscaler_brings_nodes_and_takes_them_back(autoscaled, undisturbed, tmp_path):
    assert set(autoscaled.nodes()) == {"head"}
    runs = Runs(tmp_path, TWO, autoscaled.env)
    process = runs.start()
    seen = where(runs, autoscaled, process, nodes=2)
    code, out = ended(process)
    assert code == 0, out
    assert len(seen) == 2
    assert runs.values() == undisturbed
    until = time.monotonic() + 60
    while set(autoscaled.nodes()) != {"head"}:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_head_that_dies_ends_the_driver_with_a_sentence_and_loses_nothing(
    cluster, autoscaled, undisturbed, tmp_path
):
    have(cluster, 1)
    soon = {"RAY_gcs_rpc_server_reconnect_timeout_s": "15"}  # Ray's own end; ours is earlier
    runs = Runs(tmp_path, GRID, cluster.env | soon)
    process = runs.start()
    with_a_checkpoint(runs, process)
    cluster.kill("head")
    at = time.monotonic()
    code, out = ended(process)
    assert code == 1, out
    assert time.monotonic() - at < 30
    assert re.search(r"Ray's head at \S+ has been silent for \d+ s .*: it is given up", out)
    assert "Traceback" not in out
    made = runs.encoders()
    runs.env |= autoscaled.env
    runs.change(TWO)
    code, out = runs.run()
    assert code == 0, out
    assert runs.values() == undisturbed
    assert made.items() <= runs.encoders().items()


def have(cluster: Cluster, count: int) -> None:
    """Returns once it has so many nodes beside its head."""
    for _ in range(count - len(cluster.nodes()) + 1):
        cluster.add()
    until = time.monotonic() + 90
    while len(cluster.nodes()) < count + 1:
        assert time.monotonic() < until
        time.sleep(0.1)


def where(runs: Runs, cluster: Cluster, process, nodes: int) -> set[str]:
    """The nodes on which trials were seen: so many, or all until the sweep ended."""
    seen: dict[int, str] = {}
    while len(set(seen.values())) < nodes and process.poll() is None:
        for pid in {said["pid"] for said in runs.progress()} - seen.keys():
            if node := cluster.node_of(pid):
                seen[pid] = node
        time.sleep(0.2)
    return set(seen.values())


def with_a_checkpoint(runs: Runs, process) -> dict:
    """What a trial said that is under way and has two epochs in its checkpoint."""
    while True:
        assert process.poll() is None, process.communicate()
        kept = runs.store.stamps("checkpoints", ".pt")
        for said in runs.progress():
            at = int(kept.get(said["encoder"], "0-0").partition("-")[0]) / 1e9
            if said["curve"][1:] and said["state"] == "pretraining" and at > said["updated"]:
                return said
        time.sleep(0.02)
