"""A sweep submitted to a head that has no workers: nodes come, one dies, one is drained, all go."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import api
import pytest
import torch
from clusters import Cluster
from runs import Runs

from medssl import trial

DRAIN = api.ROOT / "deploy" / "base" / "drain.py"
GRID = "method=[SIMCLR], seed=[0, 1, 2], epochs=24, train_images=128, batch_size=64"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and /proc of Linux"),
]


@pytest.fixture
def cluster(tmp_path):
    """A head whose autoscaler adds two nodes at most, of which the job is told as by rayjob.py."""
    told = {"MEDSSL_NODES": json.dumps([{"CPU": 1, "GPU": 0, "most": 2}]), "OMP_NUM_THREADS": "1"}
    told["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # whose python has medssl
    made = Cluster(most=2, dashboard=True, env=told)
    yield made
    made.end()


def test_a_submitted_sweep_brings_nodes_survives_their_loss_and_gives_them_back(cluster, tmp_path):
    assert set(cluster.nodes()) == {"head"}
    runs = Runs(tmp_path, GRID, cluster.env)
    job = submitted(runs, cluster)
    killed = under_way(runs, cluster, set())
    cluster.kill(killed)
    drained = under_way(runs, cluster, {killed})
    [before] = [said for said in runs.progress() if cluster.node_of(said["pid"]) == drained]
    ip = f"127.0.0.{2 + int(drained.rpartition('-')[2])}"
    command = [sys.executable, DRAIN]
    known = os.environ | cluster.env | {"POD_IP": ip}
    said = subprocess.run(command, env=known, capture_output=True, text=True, timeout=90)
    assert said.stdout.startswith("drained"), said
    left = last(runs, before["encoder"])
    if drained in cluster.nodes():  # the autoscaler may have taken it back
        cluster.kill(drained)
    state, log = ended(cluster, job)
    assert state == "SUCCEEDED", log
    assert runs.values() == alone(tmp_path)

    log = runs.store.read(f"logs/{before['encoder']}.log").decode()
    *_, after = re.split(r"; on \S+, pid \d+\n", log)
    again = int(re.search(r"epoch (\d+):", after)[1])
    assert again >= left >= 2  # counted from 0: no epoch is done twice
    [end] = [said for said in runs.progress() if said["encoder"] == before["encoder"]]
    assert end["ended"] == 0, end  # it cost no retry

    until = time.monotonic() + 90
    while set(cluster.nodes()) != {"head"}:
        assert time.monotonic() < until, cluster.nodes()
        time.sleep(0.2)


def submitted(runs: Runs, cluster: Cluster) -> str:
    """The job's name, as `medssl submit` says it."""
    command = [sys.executable, "-m", "medssl", "submit", str(runs.file)]
    command += ["--address", cluster.jobs, "--store", runs.store.address]
    done = subprocess.run(command, env=runs.env | cluster.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(r"job (\S+): submitted", done.stdout)[1]


def under_way(runs: Runs, cluster: Cluster, but: set[str]) -> str:
    """A node, none of `but`, on which a trial has epochs behind it and a checkpoint."""
    until = time.monotonic() + 180
    while True:
        assert time.monotonic() < until, (runs.progress(), cluster.nodes())
        kept = runs.store.names("checkpoints", ".pt")
        for said in runs.progress():
            young = said["state"] == "pretraining" and 2 <= len(said["curve"]) <= 18
            node = cluster.node_of(said["pid"])
            if young and said["encoder"] in kept and node and node not in but:
                return node
        time.sleep(0.1)


def last(runs: Runs, encoder: str) -> int:
    """The last epoch of an encoder that is in its curve."""
    [said] = [said for said in runs.progress() if said["encoder"] == encoder]
    return len(said["curve"])


def ended(cluster: Cluster, job: str) -> tuple[str, str]:
    """How a job ended, and what it said."""
    code = (
        "import json, sys, time\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "client, until = JobSubmissionClient(sys.argv[1]), time.monotonic() + 300\n"
        "while (state := client.get_job_status(sys.argv[2]).value) in ('PENDING', 'RUNNING'):\n"
        "    assert time.monotonic() < until, client.get_job_logs(sys.argv[2])\n"
        "    time.sleep(0.5)\n"
        "print(json.dumps([state, client.get_job_logs(sys.argv[2])]))\n"
    )
    command = [sys.executable, "-c", code, cluster.jobs, job]
    done = subprocess.run(command, env=os.environ | cluster.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def alone(folder) -> dict:
    """The same grid's values, without Ray."""
    runs = Runs(folder / "alone", GRID)
    for encoder in dict.fromkeys(cell.encoder for cell in runs.cells):
        mine = [cell for cell in runs.cells if cell.encoder == encoder]
        trial.run(mine, runs.store, trial.Here(torch.device("cpu")))
    return runs.values()
