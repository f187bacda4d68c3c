"""A file is whole or absent, whoever is killed while writing it: in a folder and in a bucket.

The bucket is moto's server on this machine, a stand-in for S3: it shows that we ask S3 rightly, and
nothing of how S3 itself behaves under load.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from served import KEYS, Moto

from medssl import store as module
from medssl.store import Bucket, Store, open_store


@pytest.fixture(scope="module")
def moto():
    server = Moto()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, monkeypatch):
    """An empty store's address, of either kind."""
    if request.param == "folder":
        return str(tmp_path / "new")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    moto = request.getfixturevalue("moto")
    return moto.address.replace("prefix", f"{tmp_path.name}/deep")


def test_what_is_written_is_read_and_listed(place):
    store = open_store(place)
    assert store.read("rows/a.parquet") is None
    assert not store.has("rows/a.parquet")
    assert store.names("rows", ".parquet") == set()
    assert store.stamps("rows", ".parquet") == {}
    store.write("rows/a.parquet", b"one")
    store.write("rows/a.parquet", b"two")
    store.write("rows/b.json", b"-")
    store.write("rows/deeper/c.parquet", b"-")
    assert store.read("rows/a.parquet") == b"two"
    assert store.has("rows/a.parquet")
    assert not store.has("rows")
    assert store.names("rows", ".parquet") == {"a"}
    store.delete("rows/a.parquet")
    store.delete("rows/a.parquet")
    assert store.read("rows/a.parquet") is None
    store.write("empty", b"")
    assert store.read("empty") == b""


def test_a_stamp_changes_with_its_file(place):
    store = open_store(place)
    store.write("rows/a.parquet", b"one")
    store.write("rows/b.parquet", b"one")
    was = store.stamps("rows", ".parquet")
    assert was.keys() == {"a", "b"}
    assert store.stamps("rows", ".parquet") == was
    time.sleep(1.1)  # a bucket's times are whole seconds
    store.write("rows/a.parquet", b"two")
    now = store.stamps("rows", ".parquet")
    assert now["a"] != was["a"]
    assert now["b"] == was["b"]


def test_the_address_makes_the_same_store_elsewhere(place):
    open_store(place).write("x/f", b"1")
    code = (
        "import sys; from medssl import store as s; print(s.open_store(*sys.argv[1:]).read('x/f'))"
    )
    command = [sys.executable, "-c", code, open_store(place).address]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "b'1'\n"


def test_what_is_set_aside_is_missing_and_can_be_looked_at(place):
    store = open_store(place)
    store.write("x/file", b"half")
    store.set_aside("x/file")
    store.set_aside("x/file")  # another reader was first
    assert store.read("x/file") is None
    assert store.read("x/file.broken") == b"half"


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(place):
    store = open_store(place)
    writer = (
        "import sys; from medssl.store import open_store; s = open_store(sys.argv[1]); i = 0\n"
        "while True: s.write('x/file', bytes([i % 256]) * 12_000_000); i += 1"
    )
    for pause in (0.05, 0.1, 0.2):
        process = subprocess.Popen([sys.executable, "-c", writer, place])
        while not store.read("x/file"):
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = store.read("x/file")
        assert len(content) == 12_000_000
        assert len(set(content)) == 1
        assert store.names("x", "") == {"file"}  # drafts are not listed


class CutOff:
    """pyarrow's file system of a bucket, whose upload fails halfway and is ended all the same, as
    pyarrow does when the stream is collected."""

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def open_output_stream(self, path, **named):
        stream = self._real.open_output_stream(path, **named)

        class Half:
            def write(self, content):
                stream.write(content[: len(content) // 2])
                stream.close()
                raise OSError(5, "Input/output error")

        return Half()


def test_an_upload_that_fails_halfway_leaves_nothing_under_its_name(moto, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    store = open_store(moto.address.replace("prefix", tmp_path.name))
    real, content = store._fs, bytes(12_000_000)
    store._fs = CutOff(real)
    with pytest.raises(OSError, match="Input/output"):
        store.write("x/file", content, exclusive=True)
    store._fs = real
    assert store.read("x/file") is None
    assert store.names("x", "") == set()
    store.write("x/file", content, exclusive=True)
    assert store.read("x/file") == content


def test_what_no_waiting_mends_is_not_waited_for(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "_write", refuse)
    monkeypatch.setattr(module.time, "sleep", pytest.fail)
    with pytest.raises(PermissionError):
        Store(tmp_path, patience_s=60).write("x", b"")


def test_of_two_exclusive_writers_the_first_is_kept_and_the_second_is_told(place):
    store = open_store(place)
    store.write("x/file", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        store.write("x/file", b"second", exclusive=True)
    assert store.read("x/file") == b"first"
    assert store.names("x", "") == {"file"}
    store.write("x/file", b"third")
    assert store.read("x/file") == b"third"


def test_so_it_is_on_a_disk_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    test_of_two_exclusive_writers_the_first_is_kept_and_the_second_is_told(tmp_path)
    assert os.listdir(tmp_path / "x") == ["file"]  # no draft


def test_a_full_disk_leaves_no_draft_and_the_old_content(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write("x/file", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("x/file", b"new")
    assert os.listdir(tmp_path / "x") == ["file"]
    assert store.read("x/file") == b"old"


@pytest.mark.parametrize("verb", ["read", "has", "write", "delete", "names", "stamps", "set_aside"])
def test_a_store_that_is_away_is_asked_again_for_as_long_as_it_has_patience(
    tmp_path, monkeypatch, verb
):
    left, waited = 3, []

    def asked(*_, **__):
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(116, "Stale file handle")
        return [] if verb in ("names", "stamps") else None

    own = {"names": "_list", "stamps": "_stat", "set_aside": "_rename"}.get(verb, f"_{verb}")
    monkeypatch.setattr(Store, own, asked)
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module.time, "sleep", waited.append)
    arguments = {"write": ("x", b""), "names": ("x", ""), "stamps": ("x", "")}.get(verb, ("x",))
    getattr(Store(tmp_path, patience_s=60), verb)(*arguments)
    assert waited == [1, 2, 4]
    left = 3
    with pytest.raises(OSError, match="Stale"):
        getattr(Store(tmp_path, patience_s=4), verb)(*arguments)
    assert len(waited) == 4
    left = 1
    with pytest.raises(OSError, match="Stale"):
        getattr(Store(tmp_path), verb)(*arguments)
    assert len(waited) == 4


def test_a_bucket_that_comes_back_has_lost_nothing_that_was_written(monkeypatch):
    """The server is stopped as a process is, so that connections hang, and goes on."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server = Moto()
    try:
        store = open_store(server.address, patience_s=60)
        store.write("x/file", b"1")
        server.process.send_signal(signal.SIGSTOP)
        threading.Timer(8, server.process.send_signal, [signal.SIGCONT]).start()
        store.write("x/other", b"2")
        assert (store.read("x/file"), store.read("x/other")) == (b"1", b"2")
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://bucket/x", "no store at http://: name a folder, or s3://BUCKET/PREFIX or gs://"),
        ("s3://me:secret@bucket/x", "an address with keys would be in logs"),
        ("s3://bucket/x?access_key=a&secret_key=b", "an address with keys would be in logs"),
        ("s3:///x", "no bucket in s3:///x"),
        ("s3://bucket/x?color=red", "s3://bucket/x: .*color"),
    ],
)
def test_an_address_that_is_none_is_a_sentence(address, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_store(address)


def test_an_address_in_messages_has_no_query():
    store = open_store("s3://bucket/x/?region=eu-west-1&endpoint_override=127.0.0.1:9&scheme=http")
    assert isinstance(store, Bucket)
    assert f"{store.root}/rows" == "s3://bucket/x/rows"
