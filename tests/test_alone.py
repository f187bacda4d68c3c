"""Who comes second is told so; who was killed stands in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from medssl import alone as module
from medssl.alone import alone
from medssl.spec import Shard
from medssl.store import Store

FILE = "drivers/s.json"


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(module, "MEET_S", 0.01)


DRIVER = """
import sys, time
from medssl.alone import alone
from medssl.store import Store
with alone("s", None, Store(sys.argv[1]), print):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def driver(tmp_path):
    """Another process at the same sweep."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def enter(store, said=None, shard=None):
    with alone("s", shard, store, (said if said is not None else []).append):
        pass


def test_a_second_driver_is_refused_until_the_first_has_ended(tmp_path, driver):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=rf"s has a driver already, pid {driver.pid} on .*--shard"):
        enter(store)
    assert store.has(FILE)  # and is still the first one's
    with alone("s-2", None, store, print):
        pass  # another sweep
    with pytest.raises(ValueError, match="s has a driver already"):
        enter(store, shard=Shard(1, 2))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    enter(store)
    assert not store.has(FILE)


def test_a_process_that_has_the_number_of_one_that_was_killed_is_no_driver(tmp_path, driver):
    store = Store(tmp_path)
    said = json.loads(store.read(FILE))
    store.write(FILE, json.dumps(said | {"born": "1"}).encode())
    enter(store)


@pytest.mark.parametrize("lives", [True, False])
def test_a_driver_elsewhere_is_watched_for_a_while(tmp_path, monkeypatch, lives):
    monkeypatch.setattr(module, "DEAD_S", 5)
    store, said = Store(tmp_path), []
    other = {"driver": "x", "host": "elsewhere", "pid": 1, "born": "1", "beats": 4}
    store.write(FILE, json.dumps(other).encode())
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if lives and len(sleeps) == 3:
            store.write(FILE, json.dumps(other | {"beats": 5}).encode())

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: sum(sleeps))
    if lives:
        with pytest.raises(ValueError, match="pid 1 on elsewhere"):
            enter(store, said)
    else:
        enter(store, said)
    assert said == ["s had a driver, pid 1 on elsewhere: waiting 5 s to see whether it is alive"]
    assert sleeps[:3] == [1, 1, 1]
    assert len(sleeps) == (3 if lives else 6)


def test_a_driver_shows_that_it_lives_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    store = Store(tmp_path)
    with alone("s", None, store, print):
        first = json.loads(store.read(FILE))["beats"]
        until = time.monotonic() + 30
        while json.loads(store.read(FILE))["beats"] == first:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert not store.has(FILE)


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (Shard(1, 2), Shard(2, 2), False),
        (Shard(1, 2), Shard(1, 2), True),
        (Shard(1, 2), Shard(2, 4), True),
        (Shard(1, 2), None, True),
        (None, Shard(1, 2), True),
    ],
)
def test_parts_of_one_division_are_apart(tmp_path, first, second, refused):
    store = Store(tmp_path)
    with alone("s", first, store, print):
        if refused:
            with pytest.raises(ValueError, match="has a driver already"):
                enter(store, shard=second)
        else:
            enter(store, shard=second)
    assert not store.names("drivers", ".json")


def test_of_two_that_come_at_the_same_moment_one_is_refused(tmp_path, monkeypatch):
    store, write, other = Store(tmp_path), Store.write, {"driver": "x", "pid": 7, "host": "there"}

    def both(self, name, content):
        write(self, name, content)
        write(self, name, json.dumps(other).encode())  # a moment later

    monkeypatch.setattr(Store, "write", both)
    with pytest.raises(ValueError, match="pid 7 on there"):
        enter(store)
    assert json.loads(store.read(FILE)) == other


def test_what_another_driver_has_taken_over_is_left_to_it(tmp_path):
    store = Store(tmp_path)
    with alone("s", None, store, print):
        store.write(FILE, b'{"driver": "another"}')
    assert store.has(FILE)


def test_a_store_that_does_not_answer_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    store, said = Store(tmp_path), []
    with alone("s", None, store, said.append):
        monkeypatch.setattr(
            Store, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        time.sleep(0.3)
        monkeypatch.undo()
    assert said == [f"{tmp_path} does not answer (No space): trials wait for it"]


def test_a_broken_file_is_nobodys(tmp_path):
    store = Store(tmp_path)
    store.write(FILE, b"{half")
    enter(store)
