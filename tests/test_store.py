"""A file is whole or absent, whoever is killed while writing it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from medssl.store import Store


def test_what_is_written_is_read_and_listed(tmp_path):
    store = Store(tmp_path / "new")
    assert store.read("rows/a.parquet") is None
    assert store.names("rows", ".parquet") == set()
    store.write("rows/a.parquet", b"one")
    store.write("rows/a.parquet", b"two")
    store.write("rows/b.json", b"-")
    assert store.read("rows/a.parquet") == b"two"
    assert store.names("rows", ".parquet") == {"a"}
    store.delete("rows/a.parquet")
    store.delete("rows/a.parquet")
    assert store.read("rows/a.parquet") is None


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path):
    store = Store(tmp_path)
    writer = (
        "import sys; from medssl.store import Store; s = Store(sys.argv[1]); i = 0\n"
        "while True: s.write('x/file', bytes([i % 256]) * 4_000_000); i += 1"
    )
    for pause in (0.05, 0.1, 0.2):
        process = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path)])
        while not store.read("x/file"):
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = store.read("x/file")
        assert len(content) == 4_000_000
        assert len(set(content)) == 1
        assert store.names("x", "") == {"file"}  # drafts are not listed


@pytest.mark.parametrize("links", [True, False])
def test_of_two_exclusive_writers_the_first_is_kept_and_the_second_is_told(
    tmp_path, monkeypatch, links
):
    if not links:  # as on some shared and mounted disks

        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path)
    store.write("x/file", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        store.write("x/file", b"second", exclusive=True)
    assert store.read("x/file") == b"first"
    assert os.listdir(tmp_path / "x") == ["file"]  # no draft
    store.write("x/file", b"third")
    assert store.read("x/file") == b"third"


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
