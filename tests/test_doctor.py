"""What a machine lacks is said with its remedy, and exits with 1; what it has is not doubted."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from served import free_port, served
from typer.testing import CliRunner

from medssl import doctor
from medssl.cli import app
from medssl.store import open_store

SECRET = "s3cret-word"


def mlflow(code: int, seen: list):
    """The address of a server that answers every request with that code."""

    def answer(handler):
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        seen.append((handler.command, handler.path, handler.headers["Authorization"], content))
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return served(answer)


def test_this_machine_lacks_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SHARED_GIB", 0)
    (tmp_path / "breastmnist.npz").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    asked = ["doctor", "--store", str(tmp_path / "store"), "--data", str(tmp_path)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    for what in ("medssl 0.", "torch 2.", "ray 2.", "mlflow 3.", "solo-learn 1."):
        assert f"ok      {what}" in done.output
    assert f"data {tmp_path}: 1 files of MedMNIST" in done.output
    assert "missing" not in done.output
    assert "MLflow" not in done.output
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"breastmnist.npz", "notes.txt"}  # nothing was left or made


def test_what_is_missing_is_said_with_its_remedy_and_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medssl.methods._solo", None)  # an import of it fails
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    done = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path)])
    assert done.exit_code == 1
    assert "missing MLflow http://127.0.0.1:" in done.output
    lines = done.output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("missing"))
    assert "solo-learn" in lines[at]
    assert "pip install --no-deps solo-learn==1.0.2" in lines[at + 1]


def test_a_package_that_breaks_at_its_import_is_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_here.py").write_text("raise RuntimeError('no libcuda\\nand more')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor._package("broken_here", "broken-here")
    assert found.ok is False
    assert found.what == "broken-here: RuntimeError: no libcuda"
    assert "pip install broken-here" in found.remedy


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"cpu.max": "3200000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_cores_are_those_of_the_container(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert doctor.cores(tmp_path) == cores


def test_memory_is_that_of_the_container(tmp_path):
    whole = doctor.memory_gib(tmp_path)
    assert whole > 0.5
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory_gib(tmp_path) == whole
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    assert doctor.memory_gib(tmp_path) == 0.25


def test_a_folder_that_cannot_be_written_is_missing(tmp_path):
    file = tmp_path / "file"
    file.touch()
    found = doctor._folder("store", str(file / "inside"), "another one")
    assert (found.ok, found.remedy) == (False, "another one")
    if os.getuid() == 0:  # who may write everywhere but where nobody may
        found = doctor._folder("home", "/proc/medssl", "HOME")
        assert found.ok is False


def test_a_folder_inside_of_somebody_else_s_is_missing(monkeypatch):
    def exists(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", exists)
    found = doctor._folder("store", "/root/mine/store", "another one")
    assert (found.ok, found.remedy) == (False, "another one")
    assert "Permission denied" in found.what


def test_a_small_shared_memory_is_doubted_and_no_reason_to_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SHARED_GIB", 1e9)
    found = doctor._shared_memory(str(tmp_path))
    assert found.ok is None
    assert "only" in found.what
    assert "shm" in found.remedy


def test_a_gpu_that_torch_does_not_see_is_missing_and_says_why(monkeypatch):
    def unavailable():
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old\nand more", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(Path, "glob", lambda self, _: iter([Path("/dev/nvidia0")]))
    (found,) = doctor._gpus()
    assert found.ok is False
    assert "1 GPUs are here" in found.what
    assert "driver on your system is too old)" in found.what
    assert "CUDA" in found.remedy


@pytest.mark.parametrize("why", ["no kernel image is available for execution", "is wrong"])
def test_a_gpu_that_does_not_multiply_is_missing(monkeypatch, why):
    card = types.SimpleNamespace(name="Old Card", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)

    def ones(*_, **__):
        if why == "is wrong":
            return torch.zeros(256, 256)
        raise RuntimeError(f"{why}\nand more")

    monkeypatch.setattr(torch, "ones", ones)
    (found,) = doctor._gpus()
    assert found.ok is False
    assert found.what.startswith("GPU 0: Old Card, 8 GiB does not compute: ")
    assert found.what.endswith(why)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_that_is_there_computes():
    found = list(doctor._gpus())
    assert len(found) == torch.cuda.device_count()
    assert all(each.ok for each in found)


@pytest.mark.parametrize(
    ("code", "ok", "remedy"),
    [(200, True, ""), (401, False, "MLFLOW_TRACKING_PASSWORD"), (403, False, "ALLOWED_HOSTS")],
)
def test_mlflow_is_asked_as_the_user_that_we_are(monkeypatch, code, ok, remedy):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "medssl")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    seen = []
    with mlflow(code, seen) as address:
        found = doctor._mlflow(address.rpartition("/")[0])
    assert found.ok is ok
    assert remedy in found.remedy
    ((method, path, sent, body),) = seen
    assert (method, path) == ("POST", "/api/2.0/mlflow/experiments/search")
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == f"medssl:{SECRET}"
    assert json.loads(body) == {"max_results": 1}
    assert SECRET not in str(found)


def test_mlflow_that_is_away_is_missing_and_no_password_is_shown():
    found = doctor._mlflow(f"http://me:{SECRET}@127.0.0.1:{free_port()}")
    assert found.ok is False
    assert SECRET not in str(found)
    assert doctor._mlflow(f"postgresql://me:{SECRET}@host/db").ok is None


def test_a_user_in_the_address_is_who_we_are_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "another")
    seen = []
    with mlflow(200, seen) as address:
        host = address.rpartition("/")[0].removeprefix("http://")
        found = doctor._mlflow(f"http://me:{SECRET}%21@{host}")
    assert (found.ok, found.what) == (True, f"MLflow http://{host}: answers me")
    assert base64.b64decode(seen[0][2].removeprefix("Basic ")).decode() == f"me:{SECRET}!"
    found = doctor._mlflow(f"http://me:{SECRET}@127.0.0.1:9x")
    assert found.ok is False
    assert SECRET not in str(found)


def test_a_port_of_something_else_is_no_mlflow():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as line:
                line.recv(1000)
                line.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        found = doctor._mlflow(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert found.ok is False
    assert "SSH-2.0" in found.what


def test_a_bucket_that_cannot_be_written_is_missing(monkeypatch):
    def refused(address):
        raise OSError("AccessDenied\nkey=1")

    monkeypatch.setattr("medssl.store.open_store", refused)
    found = doctor._store(f"s3://bucket/x?access_key=1&secret_key={SECRET}")
    assert (found.ok, found.what) == (False, "store s3://bucket/x: AccessDenied")


def test_a_bucket_that_can_be_written_is_left_as_it_was(tmp_path, monkeypatch):
    kept = open_store(tmp_path)
    monkeypatch.setattr("medssl.store.open_store", lambda _: kept)
    assert doctor._store("s3://bucket/x").ok
    assert list(tmp_path.iterdir()) == []


def test_it_runs_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from medssl.cli import app; app(['doctor', '--store', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert "missing torch" in done.stdout
    assert "Traceback" not in done.stderr
