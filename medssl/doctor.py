"""What this machine, or this pod, can do, and what it lacks: each with its remedy.

    packages, cores, memory, GPUs -> folders -> MLflow's server, where one is named

Nothing is guessed from a name: packages are imported, GPUs multiply, folders are written to, and a
container's cores and memory are those of its limits and not of its node.
"""

import base64
import http.client
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

PACKAGES = {  # as imported, and as installed
    "torch": "torch",
    "ray.tune": "ray",
    "mlflow": "mlflow",
    "medssl.methods._solo": "solo-learn",
    "pyarrow": "pyarrow",
    "timm": "timm",
    "medmnist": "medmnist",
    "sklearn": "scikit-learn",
}
SHARED_GIB = 0.25  # of /dev/shm: Ray's object store holds 200 MB of names, and warns below
CGROUP = Path("/sys/fs/cgroup")


class Finding(NamedTuple):
    """One thing that a sweep needs; `remedy` where it is missing."""

    ok: bool | None  # None: it cannot be seen from here, or may do as it is
    what: str
    remedy: str = ""


def examine(store: str, data: Path | None) -> Iterator[Finding]:
    yield _python()
    for name, package in PACKAGES.items():
        yield _package(name, package)
    yield Finding(True, f"{cores():g} cores, {memory_gib():.1f} GiB of memory")
    yield from _gpus()
    yield _folder("home", str(Path.home()), "set HOME to a folder that is yours, or mount one")
    yield _folder("temporary", tempfile.gettempdir(), "Ray works there: set TMPDIR, or mount one")
    yield _shared_memory()
    yield _store(store)
    yield _data(data)
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        yield _mlflow(address)


def cores(cgroup: Path = CGROUP) -> float:
    """That this process may use: its container's limit, or fewer where it is bound to some."""
    able = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    quota, period = "max", "1"
    if text := _read(cgroup / "cpu.max"):
        quota, period = text.split()
    elif text := _read(cgroup / "cpu/cpu.cfs_quota_us"):  # of older kernels; -1: no limit
        quota = text if int(text) > 0 else "max"
        period = _read(cgroup / "cpu/cpu.cfs_period_us") or "100000"
    count = float(len(able(0)))
    return count if quota == "max" else min(count, int(quota) / int(period))


def memory_gib(cgroup: Path = CGROUP) -> float:
    """The machine's, or the container's limit where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        if (text := _read(cgroup / file)).isdigit():
            limits.append(int(text))
    return min(limits) / 2**30


def _python() -> Finding:
    from medssl import plan

    told = f"medssl {plan.code_version()}, Python {platform.python_version()} in {sys.prefix}"
    return Finding(sys.version_info >= (3, 11), told, "medssl needs Python 3.11 or newer")


def _package(name: str, package: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
        return Finding(True, f"{package} {importlib.metadata.version(package)}")
    except Exception as no:  # whatever a package does at its import
        remedy = f"`{sys.executable} -m pip install {package}`, or the environment of `make demo`"
        if package == "solo-learn":
            remedy = "`pip install --no-deps solo-learn==1.0.2`"
        return Finding(False, f"{package}: {type(no).__name__}: {_first(no)}", remedy)


def _gpus() -> Iterator[Finding]:
    try:
        import torch
    except Exception:
        return  # told already
    from medssl import device

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        bf16 = "bf16" if device.bf16(torch.device("cpu")) else "float32"
        here = [*Path("/dev").glob("nvidia[0-9]*")]
        if not here:
            yield Finding(True, f"no GPU: trials compute on the CPU, in {bf16}")
            return
        why = f" ({_first(told[0].message)})" if told else ""
        yield Finding(
            False,
            f"{len(here)} GPUs are here, and torch {torch.__version__} sees none{why}",
            f"a driver for CUDA {torch.version.cuda} or newer; `nvidia-smi` says which is there"
            if torch.version.cuda
            else "this torch was built without CUDA: install another build",
        )
        return
    for number in range(count):
        gpu = torch.device("cuda", number)
        known = torch.cuda.get_device_properties(gpu)
        name = f"GPU {number}: {known.name}, {known.total_memory / 2**30:.0f} GiB"
        try:
            x = torch.ones(256, 256, device=gpu, dtype=torch.float32)
            if (x @ x).sum().item() != 256.0**3:
                raise ArithmeticError("a product of matrices is wrong")
            free = torch.cuda.mem_get_info(gpu)[0] / 2**30
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
            yield Finding(True, f"{name} ({free:.0f} free), {bf16}, CUDA {torch.version.cuda}")
        except Exception as no:
            yield Finding(
                False, f"{name} does not compute: {_first(no)}", "a torch built for this GPU"
            )


def _folder(what: str, name: str, remedy: str) -> Finding:
    """Whether a file can be written there, or the folder be made."""
    folder = Path(name)
    try:  # whether it is there can be refused too
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        probe = there / f".medssl-doctor-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"")
        probe.unlink()
        free = shutil.disk_usage(there).free / 2**30
    except OSError as no:
        return Finding(False, f"{what} {folder}: {no.strerror or no}", remedy)
    return Finding(True, f"{what} {folder}: writable, {free:.1f} GiB free")


def _shared_memory(folder: str = "/dev/shm") -> Finding:
    remedy = "Ray is slower without: `docker run --shm-size 2g`; KubeRay mounts one by itself"
    found = _folder("shared memory", folder, remedy)
    if found.ok and (whole := shutil.disk_usage(folder).total / 2**30) < SHARED_GIB:
        found = Finding(False, f"shared memory {folder}: only {whole * 1024:.0f} MiB", remedy)
    return found if found.ok else found._replace(ok=None)


def _store(address: str) -> Finding:
    from medssl.store import open_store

    if "://" not in address:
        return _folder("store", address, "set MEDSSL_STORE or --store to a folder that is yours")
    try:
        kept, name = open_store(address), f"probe-{uuid.uuid4().hex[:8]}"
        kept.write(name, b"")
        kept.delete(name)
    except (OSError, ValueError) as no:
        remedy = "its credentials and rights, or another MEDSSL_STORE"
        return Finding(False, f"store {_shown(address)}: {_first(no)}", remedy)
    return Finding(True, f"store {_shown(address)}: writable")


def _data(folder: Path | None) -> Finding:
    folder = (folder or Path.home() / ".medmnist").expanduser()
    count = len(list(folder.glob("*.npz"))) if os.access(folder, os.R_OK | os.X_OK) else 0
    if count:
        return Finding(True, f"data {folder}: {count} files of MedMNIST")
    remedy = "`medssl data list` says what belongs there, `medssl data fetch NAME` gets it"
    return Finding(None, f"data {folder}: no file of MedMNIST", remedy)


def _mlflow(address: str) -> Finding:
    """Whether it is there, takes us by this name, and knows our password."""
    shown, parts = f"MLflow {_shown(address)}", urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return Finding(None, f"{shown}: no server")
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    asked = urllib.request.Request(
        f"{plain.rstrip('/')}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={"Content-Type": "application/json"},
    )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user:  # as MLflow's client has it: an address with a user goes before these
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        both = base64.b64encode(f"{user}:{password}".encode()).decode()
        asked.add_header("Authorization", f"Basic {both}")
    try:
        urllib.request.urlopen(asked, timeout=10).close()
    except urllib.error.HTTPError as no:
        remedy = {
            401: "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are not its user's",
            403: "its MLFLOW_SERVER_ALLOWED_HOSTS has not this name with this port",
        }.get(no.code, "its log says more")
        return Finding(False, f"{shown}: {no.code} {no.reason}", remedy)
    except (OSError, ValueError, http.client.HTTPException) as no:
        remedy = "a sweep runs without it, and sends what it missed later: is it up, and reachable?"
        return Finding(False, f"{shown}: {_first(getattr(no, 'reason', no))}", remedy)
    return Finding(True, f"{shown}: answers" + (f" {user}" if user else ""))


def _shown(address: str) -> str:
    """Without a user, a password or keys."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _first(no: object) -> str:
    """The first line of what it says."""
    return str(no).strip().partition("\n")[0]


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
