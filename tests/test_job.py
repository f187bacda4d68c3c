"""`ray job submit ... python SWEEP` and `medssl submit SWEEP` on a real cluster of one node, which
wants its token."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from runs import Runs

from medssl import results

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # on a machine that may be busy
    pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2, which Linux has"),
]


def free_port() -> int:
    """Below 10002, where Ray's worker ports begin."""
    for port in range(6500, 9900, 7):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and probe.connect_ex(("127.0.0.2", port)):
                return port
    raise RuntimeError("no free port")


def pids_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder: what this test started, and nothing else."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def cluster():
    """A head with two cores on loopback: its job address and the environment of its clients."""
    folder = Path(f"/tmp/medssl-ray-{os.getpid()}")  # short: sockets have 107 characters
    folder.mkdir(mode=0o700)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(os.urandom(32).hex())
    gcs = free_port()
    board, client, agent = gcs + 7, gcs + 14, gcs + 21
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    env |= {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}  # as in the image
    command = [RAY, "start", "--head", "--num-cpus=2", f"--port={gcs}"]
    command += ["--node-ip-address=127.0.0.2", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={board}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # 52365 may be another Ray's
    command += [f"--temp-dir={folder}/head", "--object-store-memory=200000000"]
    command += ["--disable-usage-stats"]
    try:
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
        yield f"http://127.0.0.1:{board}", env
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids_of(folder):
                try:
                    os.kill(pid, sign)
                except ProcessLookupError:
                    continue
            time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)


def submit(address: str, env: dict, *entrypoint) -> tuple[int, str]:
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *entrypoint]
    for _ in range(20):
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if "No available agent" not in done.stdout:  # the head is up before its job agent is
            break
        time.sleep(3)
    return done.returncode, done.stdout


@pytest.mark.long
def test_a_sweep_is_submitted_runs_to_succeeded_and_leaves_the_same_table(cluster, tmp_path):
    address, env = cluster
    there, here = Runs(tmp_path / "there", "seed=0"), Runs(tmp_path / "here", "seed=0")
    with there.file.open("a") as file:  # as every file in sweeps/ ends
        file.write(
            "\nif __name__ == '__main__':\n    from medssl import cli\n\n    cli.script(__file__)\n"
        )
    code, out = submit(address, env, sys.executable, there.file, "--store", there.store.root)
    assert code == 0, out[-3000:]
    assert "succeeded" in out.lower()
    code, out = here.run()
    assert code == 0, out
    assert there.values() == here.values() != {}
    assert results.missing(there.cells, there.store) == []


def test_without_the_token_nothing_is_accepted(cluster):
    address, env = cluster
    env = {**env, "RAY_AUTH_TOKEN_PATH": "/dev/null", "RAY_AUTH_TOKEN": "wrong"}
    code, out = submit(address, env, sys.executable, "-c", "print('in')")
    assert code != 0
    assert "Invalid authentication token" in out  # and not whatever else may fail


def medssl(address: str, env: dict, runs: Runs, *more: str) -> tuple[int, str]:
    """What `medssl submit` says of a sweep."""
    command = [sys.executable, "-m", "medssl", "submit", runs.file, "--address", address]
    command += ["--store", runs.store.root, *more]
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, " ".join(done.stdout.split())


def jobs(address: str, env: dict, sweep: str) -> dict[str, str]:
    """Of a sweep, as the cluster has them: id -> status."""
    token = Path(env["RAY_AUTH_TOKEN_PATH"]).read_text()
    asked = urllib.request.Request(f"{address}/api/jobs/")
    asked.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        found = {job["submission_id"]: job["status"] for job in json.load(answer)}
    return {id: status for id, status in found.items() if id and id.startswith(f"{sweep}-")}


def until_ended(address: str, env: dict, sweep: str) -> dict[str, str]:
    until = time.monotonic() + 600
    while {"PENDING", "RUNNING"} & set((found := jobs(address, env, sweep)).values()):
        assert time.monotonic() < until, found
        time.sleep(1)
    return found


@pytest.mark.long
def test_medssl_submit_runs_a_sweep_once_however_often_it_is_said(cluster, tmp_path):
    address, env = cluster
    runs = Runs(tmp_path / "a folder", "name='once', method='none', seed=0")
    code, out = medssl(address, env, runs)
    assert code == 0, out
    job = re.search(r"job (once-[0-9a-f]{8}): submitted", out)[1]
    assert f"ray job logs --address {address} --follow {job}" in out
    code, out = medssl(address, env, runs)
    assert code == 0, out
    assert re.search(rf"job {job}: is (pending|running) already; nothing was submitted", out), out

    assert until_ended(address, env, "once") == {job: "SUCCEEDED"}
    assert results.missing(runs.cells, runs.store) == []

    code, out = medssl(address, env, runs)  # one that has ended may be wanted again
    assert (code, f"job {job}: submitted" in out) == (0, True), out
    assert until_ended(address, env, "once") == {job: "SUCCEEDED"}
    follow = [RAY, "job", "logs", "--address", address, job]
    told = subprocess.run(follow, env=env, capture_output=True, text=True, check=True).stdout
    assert "2 done, 0 missing" in told

    secret, places = Path(env["RAY_AUTH_TOKEN_PATH"]).read_bytes(), [told.encode()]
    for folder in (Path(env["RAY_AUTH_TOKEN_PATH"]).parent / "head", tmp_path):
        for name in folder.rglob("*"):
            if name.is_file() and not name.is_symlink():
                places.append(name.read_bytes())
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            places.append(entry.read_bytes())
    assert len(places) > 100
    assert not any(secret in place for place in places)


@pytest.mark.parametrize("given", ["none", "absent", "wrong"])
def test_medssl_submit_says_that_the_token_is_missing_or_wrong(cluster, tmp_path, given):
    address, env = cluster
    env = {key: value for key, value in env.items() if not key.startswith("RAY_AUTH")}
    env["HOME"] = str(tmp_path)  # a token may be in the user's own
    if given == "wrong":
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    if given == "absent":
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    runs = Runs(tmp_path, f"name='{given}', seed=0")
    code, out = medssl(address, env, runs)
    assert code == 2, out
    assert f"{address} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in out
    assert "Traceback" not in out
    assert len(out) < 400
    assert "0123456789abcdef" not in out
    assert jobs(*cluster, given) == {}


def test_medssl_submit_says_where_no_ray_answers(cluster, tmp_path):
    _, env = cluster
    address = f"http://127.0.0.1:{free_port()}"
    code, out = medssl(address, env, Runs(tmp_path, "name='away', seed=0"))
    assert code == 2, out
    assert f"no Ray answers at {address}" in out
