"""Run by a worker's pod before it is stopped, so that what is lost costs no trial a retry.

    Ray is told that this node is preempted -> it places nothing here, and forgives what dies here
    -> trials are asked to end (SIGTERM) -> each leaves a checkpoint -> the pod may go

Where the head has gone already there is nobody to tell, and trials are asked all the same.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

PATIENCE_S = 45  # with trials; of the pod's 60, Ray's own end takes the rest
OTHERS = (
    b"ray::DashboardAgent",
    b"ray::RuntimeEnvAgent",
    b"ray::IDLE",
)  # a node dies with its agents


def main(ip: str) -> None:
    until = time.monotonic() + PATIENCE_S
    try:
        print("drained" if tell(ip) else "the head does not know this node")
    except Exception as error:
        print(f"the head was not told: {type(error).__name__}: {error}")
    asked = trials(ip)
    for pid in asked:
        send(pid, signal.SIGTERM)
    while any(Path(f"/proc/{pid}").exists() for pid in asked) and time.monotonic() < until:
        time.sleep(0.2)
    print(f"{len(asked)} processes asked to end")


def tell(ip: str) -> bool:
    """Whether the head, at RAY_ADDRESS, has this node down as preempted."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
    socket.create_connection((host, int(port)), 3).close()  # Ray would wait for it 40 s
    head = GcsClient(address=os.environ["RAY_ADDRESS"])
    for id, node in head.get_all_node_info(timeout=5).items():
        if node.node_manager_address == ip and node.state == node.ALIVE:
            reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline = int((time.time() + PATIENCE_S) * 1000)
            return head.drain_node(id.hex(), reason, "the pod is stopped", deadline)[0]
    return False


def trials(ip: str) -> list[int]:
    """The workers of this node's raylet; in a pod it is the only one."""
    found = {}  # pid -> (its parent, its command)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                found[int(entry.name)] = int(parent), (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
    mine = f"--node_ip_address={ip}\0".encode()
    raylets = {
        pid
        for pid, (_, command) in found.items()
        if b"raylet/raylet" in command and mine in command
    }
    return [
        pid
        for pid, (parent, command) in found.items()
        if parent in raylets and command.startswith(b"ray::") and not command.startswith(OTHERS)
    ]


def send(pid: int, sign: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


if __name__ == "__main__":
    main(os.environ.get("POD_IP") or sys.argv[1])
