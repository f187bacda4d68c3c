"""What a worker's pod does before it is stopped, on a real cluster of Ray's."""

import json
import os
import re
import subprocess
import sys
import time

import api
import clusters
import pytest
from runs import Runs, ended

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and /proc of Linux"),
]
DRAIN = api.ROOT / "deploy" / "base" / "drain.py"

DRIVER = """
import json, os, signal, subprocess, sys, time
import ray

ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
class Trial:
    def __init__(self):
        self.left = False
        signal.signal(signal.SIGTERM, self.leave)
    def leave(self, *_):
        self.left = True
    def where(self):
        return ray.util.get_node_ip_address()
    def run(self):
        for _ in range(600):
            if self.left:
                return "left a checkpoint"
            time.sleep(0.1)
        return "was not asked"

trial = Trial.remote()
here = ray.get(trial.where.remote())
end = trial.run.remote()
drain = subprocess.Popen([sys.executable, sys.argv[1]], env=os.environ | {"POD_IP": here},
                         stdout=subprocess.PIPE, text=True)
end = ray.get(end)
ray.kill(trial)  # as Tune does with a trial that ended
said = drain.communicate(timeout=60)[0]
after = Trial.remote()
there = ray.get(after.where.remote())
more = Trial.remote()  # the other node is full now, and the drained one takes nothing
waiting = ray.wait([more.where.remote()], timeout=4)[1]
print(json.dumps([end, said, here != there, len(waiting)]))
"""


@pytest.fixture
def cluster():
    made = clusters.Cluster()
    try:
        made.add()
        made.add()
        until = time.monotonic() + 90
        while len(made.nodes()) < 3:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield made
    finally:
        made.end()


def test_trials_are_asked_to_end_and_none_comes_after(cluster, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    ran = subprocess.run(
        [sys.executable, tmp_path / "driver.py", DRAIN],
        env=os.environ | cluster.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    end, said, elsewhere, waiting = json.loads(ran.stdout.splitlines()[-1])
    assert end == "left a checkpoint"
    assert said.splitlines() == ["drained", "1 processes asked to end"]
    assert elsewhere
    assert waiting == 1


GRID = """method=[SIMCLR], seed=[0], epochs=40, train_images=128, batch_size=64,
    resources=Resources(cpu=1, checkpoint_s=600, retries=0)"""


@pytest.mark.long
def test_a_sweep_s_trial_goes_on_elsewhere_and_is_forgiven(cluster, tmp_path):
    """With no retry to lose, and no checkpoint but the one that it leaves when it is asked."""
    runs = Runs(tmp_path, GRID, cluster.env)
    with runs.start() as process:
        try:
            _drained(runs, process, cluster)
        finally:
            process.kill()


def _drained(runs: Runs, process, cluster) -> None:
    """Once it has two epochs behind it, its node is drained; it ends as if nothing had been."""
    while not (under := [said for said in runs.progress() if len(said["curve"]) > 1]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    node = cluster.node_of(under[0]["pid"])
    ip = f"127.0.0.{2 + int(node.removeprefix('node-'))}"
    begun = time.monotonic()
    drain = subprocess.run(
        [sys.executable, DRAIN],
        env=os.environ | cluster.env | {"POD_IP": ip},
        capture_output=True,
        text=True,
        check=True,
    )
    assert drain.stdout.splitlines() == ["drained", "1 processes asked to end"]
    assert time.monotonic() - begun < 30
    if node in cluster.nodes():  # a drained node ends by itself once nothing is on it
        cluster.kill(node)
    code, out = ended(process)
    assert code == 0, out
    log = runs.store.read(f"logs/{under[0]['encoder']}.log").decode()
    assert "preempted" in log
    _, _, after = re.split(r"; on \S+, pid \d+\n", log)
    assert int(re.search(r"epoch (\d+):", after)[1]) >= len(under[0]["curve"])
    [said] = runs.progress()
    assert (said["state"], said["ended"]) == ("finished", 0)


def test_without_a_head_nothing_hangs(tmp_path):
    """The cluster goes at its sweep's end, and the head may be first."""
    env = {"PATH": os.environ["PATH"], "POD_IP": "127.0.0.9", "RAY_ADDRESS": "127.0.0.9:1"}
    begun = time.monotonic()
    ran = subprocess.run(
        [sys.executable, DRAIN], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert "the head was not told" in ran.stdout, ran.stderr
    assert "0 processes asked to end" in ran.stdout
    assert time.monotonic() - begun < 20
