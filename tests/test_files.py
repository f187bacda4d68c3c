"""A file is whole or absent, whoever is late, cut off or first. The killed: test_store.py."""

import contextlib
import os
import threading

import pytest
from served import WRONG, sent, served

from medssl import _files
from medssl._files import download, whole


def fine(draft):
    return []


def test_a_file_takes_its_name_when_it_is_written_and_on_the_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "new" / "file", []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.exists()))
    with whole(path) as draft:
        draft.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert synced == [False]  # on the disk first, then under its name
    assert os.listdir(path.parent) == ["file"]


def write_half(path, error):
    with whole(path) as draft:
        draft.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    for old in ([], ["file"]):
        with pytest.raises(error):
            write_half(path, error)
        assert os.listdir(tmp_path) == old
        path.write_bytes(b"old")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("exclusive", "stays"), [(False, b"last"), (True, b"first")])
def test_of_two_writers_at_once_one_is_kept_whole(tmp_path, exclusive, stays):
    path = tmp_path / "file"
    late = pytest.raises(FileExistsError) if exclusive else contextlib.nullcontext()
    with late, whole(path, exclusive) as slow:
        slow.write(b"la")
        with whole(path, exclusive) as quick:
            quick.write(b"first")
        assert path.read_bytes() == b"first"
        slow.write(b"st")
    assert path.read_bytes() == stays
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("answer", "why"), WRONG)
def test_a_download_that_goes_wrong_says_why_and_leaves_nothing(answer, why, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "STALLED_S", 0.2)
    path = tmp_path / "x" / "file"
    with served(answer) as address, pytest.raises(OSError, match=why) as told:
        download(address, path, fine)
    assert str(told.value).startswith(f"the download of {address} failed (")
    assert str(told.value).endswith(f"): try again, or put the file at {path} by hand")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_server_that_is_not_there_is_said(tmp_path):
    with served(sent(b"")) as address:
        pass
    with pytest.raises(OSError, match=r"URLError.*refused.*try again"):
        download(address, tmp_path / "file", fine)


def test_wrong_bytes_are_found_before_the_file_has_its_name(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def wrong(draft):
        assert path.read_bytes() == b"old"
        return [f"it is {draft.read_bytes()}"]

    with served(sent(b"new")) as address:
        with pytest.raises(OSError, match=r"failed \(it is b'new'\): try again"):
            download(address, path, wrong)
        assert path.read_bytes() == b"old"
        download(address, path, fine)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_many_may_fetch_the_same_file_at_once(tmp_path):
    path, content, failed = tmp_path / "file", os.urandom(3_000_000), []

    def fetch(address):
        try:
            download(address, path, lambda d: [] if d.read_bytes() == content else ["mixed"])
        except OSError as error:
            failed.append(error)

    with served(sent(content, Content_Length=str(len(content)))) as address:
        fetching = [threading.Thread(target=fetch, args=(address,)) for _ in range(4)]
        for thread in fetching:
            thread.start()
        for thread in fetching:
            thread.join()
    assert failed == []
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]
