"""A server on this machine, and the ways in which a download goes wrong."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

KEYS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


class Moto:
    """moto's server, which stands in for S3: one bucket, and what it held when it was stopped is
    gone."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
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


@contextlib.contextmanager
def served(answer):
    """The address of a server that answers each request with `answer(handler)`."""
    made = type("Handler", (http.server.BaseHTTPRequestHandler,), {"do_GET": answer})
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
