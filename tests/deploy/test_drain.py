"""What a worker's pod does before it is stopped, on a real cluster of Ray's."""

import json
import os
import subprocess
import sys
import time

import api
import clusters
import pytest

pytestmark = pytest.mark.slow
DRAIN = api.ROOT / "deploy" / "base" / "drain.py"

DRIVER = """
import json, os, signal, subprocess, sys, time
import ray
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

ray.init(log_to_driver=False)
until = time.monotonic() + 60
while len(ray.nodes()) < 3 and time.monotonic() < until:
    time.sleep(0.2)

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
