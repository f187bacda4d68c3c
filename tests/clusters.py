"""Ray clusters of several nodes on this machine: real raylets, each with a loopback address.

Every node is a session of processes (workers leave their group) with a folder of its own (raylets
that share one remove each other's files), so that it can be ended as a machine whose power fails,
and nothing else is met. The head takes a port that is free, and everything needs the cluster's
token.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
IDLE_S = 3  # after which the autoscaler gives a node back


class Cluster:
    """A head without cores. Nodes of one core come by `add`, or by Ray's autoscaler."""

    def __init__(self, most: int = 0, dashboard: bool = False, env: dict[str, str] | None = None):
        """`most`: nodes that the autoscaler may add; `dashboard`: to submit jobs to, at `.jobs`;
        `env`: of all that runs there."""
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # short: sockets' names
        self._started: list[subprocess.Popen] = []
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        client, page = _free(), _free()  # a server that nobody asks, for 10001 may be taken
        asked = ["--head", "--port=0", "--node-ip-address=127.0.0.2", "--num-cpus=0"]
        asked += [f"--ray-client-server-port={client}"]
        asked += [f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={page}"]
        self.jobs = f"http://127.0.0.1:{page}"
        if most:
            asked += [f"--autoscaling-config={self._autoscaling(most)}"]
        try:
            self._started.append(
                start(self.folder, "head", *asked, env=self.env | HEAD | (env or {}))
            )
            self.env["RAY_ADDRESS"] = self._until(lambda: address(self.folder))
        except BaseException:
            self.end()
            raise

    def add(self) -> None:
        """One more node; it joins some seconds later."""
        number = len(self._started)
        self._started.append(worker(self.folder, number, self.env))

    def nodes(self) -> dict[str, int]:
        """The session of every node that has joined, the head's too, by its name."""
        found = {}
        for pid, command in _processes(self.folder):
            if command[0].endswith("raylet/raylet"):
                name = re.search(rf"{self.folder}/([\w-]+)/\S+/raylet", " ".join(command))[1]
                with contextlib.suppress(ProcessLookupError):
                    if "Ray runtime started" in (self.folder / f"{name}.log").read_text():
                        found[name] = os.getsid(pid)
        return found

    def node_of(self, pid: int) -> str | None:
        """The name of the node on which a process is; None where either is gone."""
        with contextlib.suppress(ProcessLookupError):
            session = os.getsid(pid)
            return next((name for name, of in self.nodes().items() if of == session), None)

    def kill(self, name: str) -> None:
        """The power of that node fails."""
        switch_off(self.nodes()[name])

    def end(self) -> None:
        """Nothing of it is left, whatever state it was in."""
        for _ in range(3):  # the autoscaler may have been about to start one more
            for pid, _ in _processes(self.folder):
                with contextlib.suppress(ProcessLookupError):
                    switch_off(os.getsid(pid))
            time.sleep(0.2)
        for process in self._started:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _until(self, found, patience_s: float = 90):
        until = time.monotonic() + patience_s
        while not (answer := found()):
            told = "\n".join(file.read_text() for file in self.folder.glob("*.log"))
            assert time.monotonic() < until, told
            assert self._started[0].poll() is None, told
            time.sleep(0.1)
        return answer

    def _autoscaling(self, most: int) -> Path:
        """The file that tells Ray's autoscaler of `loopback.py`."""
        node = {"node_config": {}, "min_workers": 0}
        unused = "setup_commands", "head_setup_commands", "worker_setup_commands"
        unused += "initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"
        unused += "cluster_synced_files", "rsync_exclude", "rsync_filter"  # Ray wants them named
        file = self.folder / "autoscaling.json"
        config = {
            **{name: [] for name in unused},
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            "cluster_name": "loopback",
            "max_workers": most,
            "idle_timeout_minutes": IDLE_S / 60,
            "provider": {
                "type": "external",
                "module": "loopback.Loopback",
                "disable_node_updaters": True,  # nothing is installed on them
                "folder": str(self.folder),
                "env": self.env,
            },
            "head_node_type": "head",
            "available_node_types": {
                "head": {**node, "resources": {"CPU": 0}, "max_workers": 0},
                "one-core": {**node, "resources": {"CPU": 1}, "max_workers": most},
            },
        }
        file.write_text(json.dumps(config))
        return file


def _free() -> int:
    """A port that nobody listens at, outside of Ray's own for workers."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            if not 10002 <= (port := free.getsockname()[1]) <= 19999:
                return port


HEAD = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": "head",  # by which the autoscaler knows it among what is there
    "RAY_NODE_TYPE_NAME": "head",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
}


def start(folder: Path, name: str, *asked: str, env: dict[str, str]) -> subprocess.Popen:
    """A node in a session of its own; what it says is in NAME.log."""
    command = [RAY, "start", "--block", f"--temp-dir={folder}/{name}", "--disable-usage-stats"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    command += ["--object-store-memory=80000000", "--include-log-monitor=false", *asked]
    fair = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}  # beside other tests
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **fair, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def worker(folder: Path, number: int, env: dict[str, str]) -> subprocess.Popen:
    """A node of one core that joins the head of the folder."""
    asked = [f"--address={address(folder)}", f"--node-ip-address=127.0.0.{2 + number}"]
    return start(folder, f"node-{number}", *asked, "--num-cpus=1", env=env)


def switch_off(session: int) -> None:
    """Kills all that was started in a session, which is not our own."""
    assert session != os.getsid(0)
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError):
            if os.getsid(pid := int(entry.name)) == session:
                os.kill(pid, signal.SIGKILL)


def address(folder: Path) -> str:
    """Where the head of the folder is; "" before it is there."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "head" / "ray_current_cluster").read_text()
    return ""


def _processes(folder: Path) -> list[tuple[int, list[str]]]:
    """(pid, command) of those whose command names the folder: what was started here, and no more.

    Workers have a name of Ray's instead, and are in the session of their node.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                if str(folder) in command:
                    found.append((int(entry.name), command.split("\0")))
    return found
