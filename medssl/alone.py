"""One driver at a sweep: two by mistake would do all the work twice, and to the same end.

    drivers/SWEEP.json <- host, pid and a number that grows while the driver lives

Who comes second is told so at once. A driver that was killed leaves its file behind: on its own
machine its process is looked for; from another machine its number is watched for a while, since the
clocks of two machines need not agree.
"""

import contextlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from medssl._work import meanwhile
from medssl.spec import Shard
from medssl.store import Store

BEAT_S = 15
DEAD_S = 50  # without a beat
MEET_S = 1  # after which of two that came at once the second has written


@contextlib.contextmanager
def alone(
    sweep: str, shard: Shard | None, store: Store, say: Callable[[str], None]
) -> Iterator[None]:
    """Inside, this process is the driver of the sweep, or of its part.

    ValueError where another one is, of the same cells or of some of them.
    """
    name, me = _name(sweep, shard), uuid.uuid4().hex
    for rival in sorted(store.names("drivers", ".json")):
        if _meet(sweep, shard, rival):
            _wait(rival, store, say)
    file = f"drivers/{name}.json"
    about = {"driver": me, "host": socket.gethostname(), "pid": os.getpid()}
    about["born"] = _born(os.getpid())
    beats, silent = 0, False

    def beat() -> None:
        nonlocal beats
        beats += 1
        store.write(file, json.dumps({**about, "beats": beats}).encode())

    def go_on() -> None:
        nonlocal silent
        try:
            beat()
            silent = False
        except OSError as no:
            if not silent:
                say(f"{store.root} does not answer ({no.strerror or no}): trials wait for it")
            silent = True

    beat()
    time.sleep(MEET_S)
    if (other := _read(file, store)).get("driver") not in (None, me):  # it came at the same moment
        raise ValueError(_taken(name, other))
    try:
        with meanwhile(BEAT_S, go_on):
            yield
    finally:
        with contextlib.suppress(OSError):
            if _read(file, store).get("driver") == me:
                store.delete(file)


def _name(sweep: str, shard: Shard | None) -> str:
    return re.sub(r"[^\w.-]", "-", sweep) + (f"-{shard.part}-of-{shard.of}" if shard else "")


def _meet(sweep: str, shard: Shard | None, rival: str) -> bool:
    """Whether the driver of that name has cells of this one: parts of one division have not."""
    found = re.fullmatch(re.escape(_name(sweep, None)) + r"(-(\d+)-of-(\d+))?", rival)
    apart = found and shard and found[3] == str(shard.of) and found[2] != str(shard.part)
    return bool(found) and not apart


def _taken(name: str, other: dict) -> str:
    return (
        f"{name} has a driver already, pid {other['pid']} on {other['host']}: follow it by `medssl "
        f"status`, or end it; to share the work among several, give each a part, by --shard 1/2 "
        f"and --shard 2/2"
    )


def _wait(name: str, store: Store, say: Callable[[str], None]) -> None:
    """Returns once the driver of that name lives no more; ValueError once it is seen to."""
    file = f"drivers/{name}.json"
    if not (other := _read(file, store)):
        return
    if other["host"] == socket.gethostname():
        if _born(other["pid"]) != other["born"]:
            store.delete(file)
            return
    else:
        who = f"pid {other['pid']} on {other['host']}"
        say(f"{name} had a driver, {who}: waiting {DEAD_S} s to see whether it is alive")
        until = time.monotonic() + DEAD_S
        while time.monotonic() < until:
            time.sleep(1)
            if not (now := _read(file, store)):
                return
            if now != other:
                break
        else:
            store.delete(file)
            return
    raise ValueError(_taken(name, other))


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
