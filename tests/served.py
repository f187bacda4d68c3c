"""A server on this machine, and the ways in which a download goes wrong."""

import contextlib
import http.server
import threading
import time


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
