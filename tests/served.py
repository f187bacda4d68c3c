"""Servers on this machine, and the ways in which a download goes wrong."""

import contextlib
import http.server
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


class Moto:
    """moto's server, which stands in for S3: one bucket, and what it held when it was stopped is
    gone."""

    def __init__(self):
        self.port = free_port()
        self.address = f"s3://bucket/prefix?scheme=http&endpoint_override=127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env={**os.environ, **KEYS}, **quiet)
        self._put()

    def _put(self) -> None:
        signed = "AWS4-HMAC-SHA256 Credential=none/20260101/us-east-1/s3/aws4_request"
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/bucket", method="PUT", headers={"Authorization": signed}
        )
        for _ in range(600):
            try:
                return urllib.request.urlopen(asked, timeout=5).close()
            except urllib.error.URLError:
                assert self.process.poll() is None
                time.sleep(0.1)
        raise TimeoutError("moto's server did not start")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def initdb() -> Path | None:
    """PostgreSQL's, which Debian keeps off the path; None where there is none."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[4])
    found = shutil.which("initdb") or (newest[-1] if newest else None)
    return Path(found).resolve() if found else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL that is gone afterwards: on a socket in a folder of its own, and
    on no port. As root, which it refuses, it is another user's.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    given = {"cwd": folder, "stdin": subprocess.DEVNULL, "env": {"PATH": os.environ["PATH"]}}
    if os.getuid() == 0:
        names = {user.pw_name: user for user in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        os.chown(folder, user.pw_uid, user.pw_gid)
        given |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    here, data = initdb(), folder / "data"
    fast = [f"-c{name}=off" for name in ("fsync", "synchronous_commit", "full_page_writes")]
    make = [here, "-D", data, "-U", "medssl", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    with open(folder / "log", "wb") as log:
        given |= {"stdout": log, "stderr": log}
        try:
            subprocess.run(make, check=True, **given)
            run = [here.with_name("postgres"), "-D", data, "-k", folder, "-clisten_addresses="]
            process = subprocess.Popen([*run, *fast], **given)
            try:
                ready = [here.with_name("pg_isready"), "-q", "-h", folder]
                _until(lambda: subprocess.run(ready, check=False).returncode == 0, process)
                yield f"postgresql+psycopg2://medssl@/postgres?host={folder}"
            finally:
                process.send_signal(signal.SIGINT)  # at once, whoever is connected
                process.wait(60)
        finally:
            shutil.rmtree(folder)


@contextlib.contextmanager
def mlflow_server(backend: str, folder: Path) -> Iterator[str]:
    """The address of a real `mlflow server`; what it is asked stands in `folder`/log."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "log", "wb") as log:
        given = {"stdout": log, "stderr": log, "env": os.environ | quiet, "cwd": folder}
        process = subprocess.Popen(command, start_new_session=True, **given)
    try:
        _until(lambda: _answers(f"http://127.0.0.1:{port}/health"), process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it and its workers
        process.wait(60)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def _until(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    for _ in range(1200):
        if ready():
            return
        assert process.poll() is None, f"{process.args[0]} ended with {process.returncode}"
        time.sleep(0.1)
    raise TimeoutError(f"{process.args[0]} did not start")


@contextlib.contextmanager
def served(answer):
    """The address of a server that answers each request with `answer(handler)`."""
    answers = {"do_GET": answer, "do_POST": answer}
    made = type("Handler", (http.server.BaseHTTPRequestHandler,), answers)
    made.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x.pth"
    finally:
        server.shutdown()
        server.server_close()


def sent(content: bytes, **headers):
    """An answer of `content`, under the headers given."""

    def answer(handler):
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def stalled(handler):
    sent(b"half")(handler)
    handler.wfile.flush()
    time.sleep(2)


def refused(handler):
    handler.send_error(503)


cut_short = sent(b"half", Content_Length="1000")
cut_in_a_chunk = sent(b"ff\r\nhalf", Transfer_Encoding="chunked")
WRONG = [  # an answer, and what is said of it
    (cut_short, "4 of 1000 bytes came"),
    (cut_in_a_chunk, "IncompleteRead"),
    (stalled, "TimeoutError: timed out"),
    (refused, "HTTP Error 503"),
]
