"""One driver at a sweep: two by mistake would do all the work twice, and to the same end.

    drivers/SWEEP.json <- host, pid and a number that grows while the driver lives

Who comes second is told so at once. A driver that was killed leaves its file behind: on its own
machine its process is looked for; from another machine its number is watched for a while, since the
clocks of two machines need not agree.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from medssl.store import Store

BEAT_S = 15
DEAD_S = 50  # without a beat


@contextlib.contextmanager
def alone(name: str, store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, this process is the driver of `name`; ValueError where another one is."""
    file, me = f"drivers/{name}.json", uuid.uuid4().hex
    _wait(name, file, store, say)
    about = {"driver": me, "host": socket.gethostname(), "pid": os.getpid()}
    about["born"] = _born(os.getpid())
    stop, beats = threading.Event(), 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        store.write(file, json.dumps({**about, "beats": beats}).encode())

    def go_on() -> None:
        while not stop.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a store that is away; trials will meet it
                beat()

    beat()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=BEAT_S)
        with contextlib.suppress(OSError):
            if _read(file, store).get("driver") == me:
                store.delete(file)


def _wait(name: str, file: str, store: Store, say: Callable[[str], None]) -> None:
    """Returns once no other driver lives; ValueError once one is seen to."""
    if not (other := _read(file, store)):
        return
    who = f"pid {other['pid']} on {other['host']}"
    if other["host"] == socket.gethostname():
        if _born(other["pid"]) != other["born"]:
            return
    else:
        say(f"{name} had a driver, {who}: waiting {DEAD_S} s to see whether it is alive")
        until = time.monotonic() + DEAD_S
        while time.monotonic() < until:
            time.sleep(1)
            if not (now := _read(file, store)):
                return
            if now != other:
                break
        else:
            return
    raise ValueError(
        f"{name} has a driver already, {who}: follow it by `medssl status`, or end it; to share "
        f"the work among several, give each a part, by --shard 1/2 and --shard 2/2"
    )


def _read(file: str, store: Store) -> dict:
    try:
        return json.loads(store.read(file) or b"{}")
    except ValueError:
        return {}


def _born(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    try:  # no Linux: that it lives is all there is to know
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
