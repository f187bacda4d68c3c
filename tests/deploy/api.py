"""A real Kubernetes API server for these tests: `kube/up` of ../shared, or a cluster of one's own.

    with served(folder) as kubeconfig: ...        # skips, with the reason, where there is none

It stores, validates and authorises, and nothing runs in it. It is of Kubernetes 1.20, which has
PodDisruptionBudget in policy/v1beta1 alone; policy/v1, the same fields, is served beside it.
"""

import contextlib
import http.server
import json
import os
import random
import re
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TARGETS = "kind", "onprem", "gke-spot", "eks-spot"
STARTS = 3  # its ports are drawn at random


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Path]:
    """The kubeconfig of a fresh server, which is stopped afterwards."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    if os.environ.get("MEDSSL_KUBE_ANY") == "1":
        yield Path(os.environ["KUBECONFIG"])
        return
    kube = Path(os.environ.get("MEDSSL_KUBE", ROOT.parent / "shared" / "kube"))
    if not (kube / "up").exists():
        pytest.skip(
            f"no API server in {kube}: set MEDSSL_KUBE, or MEDSSL_KUBE_ANY=1 and KUBECONFIG"
        )
    for start in range(STARTS):
        at = folder / f"server-{start}"
        environment = os.environ | {"KUBE_PORT": str(random.randrange(20000, 28000))}
        up = subprocess.run(
            [kube / "up", at], env=environment, capture_output=True, text=True, check=False
        )
        try:
            if up.returncode == 0:
                with _budgets(at):
                    yield at / "kubeconfig"
                return
        finally:
            subprocess.run([kube / "down", at], capture_output=True, check=False)
    raise AssertionError(f"the API server did not start: {up.stdout} {up.stderr}")


def kubectl(kubeconfig: Path | None, *asked: str, given: str = "") -> subprocess.CompletedProcess:
    """What kubectl answers, whatever that is; `given` on its standard input."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    where = {}
    if kubeconfig:  # what kubectl remembers of a server is kept beside it
        kept = str(Path(kubeconfig).with_name("cache"))
        where = {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": kept}
    return subprocess.run(
        ["kubectl", *asked],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | where,
    )


def applied(kubeconfig: Path, objects: list[dict], *more: str) -> subprocess.CompletedProcess:
    """Objects by server-side apply, as `medssl cluster up` does it."""
    asked = "apply", "--server-side", "--field-manager=medssl", "--validate=strict", "-f", "-"
    return kubectl(kubeconfig, *asked, *more, given=yaml.safe_dump_all(objects))


def rendered(folder: str) -> list[dict]:
    """What a folder of deploy/ comes to."""
    built = kubectl(None, "kustomize", str(ROOT / "deploy" / folder))
    assert built.returncode == 0, built.stderr
    return list(yaml.load_all(built.stdout, yaml.CSafeLoader))


EDITS = {"EDIT-API-SERVER": "10.1.2.3", "EDIT-VPC-CIDR": "10.1.0.0/16"}


def edited(objects: list[dict]) -> list[dict]:
    """The same as a user leaves it, with every EDIT-SOMETHING replaced."""
    text = json.dumps(objects)
    for name, value in EDITS.items():
        text = text.replace(name, value)
    return json.loads(re.sub(r"EDIT(-[A-Z]+)*", lambda found: found[0].lower(), text))


@contextlib.contextmanager
def _budgets(at: Path) -> Iterator[None]:
    """policy/v1, as a server beside the real one that hands all it is asked to policy/v1beta1."""
    config = yaml.safe_load((at / "kubeconfig").read_text())
    real, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
    trusting = ssl._create_unverified_context()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            if "Content-Type" in self.headers:
                headers["Content-Type"] = self.headers["Content-Type"]
            asked = urllib.request.Request(
                real + self.path.replace("/policy/v1", "/policy/v1beta1"),
                re.sub(rb"policy/v1\b", b"policy/v1beta1", body) or None,
                headers,
                method=self.command,
            )
            try:
                found = urllib.request.urlopen(asked, context=trusting)
            except urllib.error.HTTPError as refused:
                found = refused
            self.send_response(found.status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            for line in found:
                self.wfile.write(line.replace(b"policy/v1beta1", b"policy/v1"))
                self.wfile.flush()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    key, certificate = at / "policy.key", at / "policy.crt"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(certificate, key)
    server.socket = secure.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        named = {"name": "crd-server", "namespace": "default", "port": server.server_port}
        spec = {"group": "policy", "version": "v1", "groupPriorityMinimum": 17000}
        spec |= {"versionPriority": 20, "insecureSkipTLSVerify": True, "service": named}
        kind = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService"}
        urllib.request.urlopen(  # it takes this kind by POST alone
            urllib.request.Request(
                f"{real}/apis/apiregistration.k8s.io/v1/apiservices",
                json.dumps(kind | {"metadata": {"name": "v1.policy"}, "spec": spec}).encode(),
                {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            ),
            context=trusting,
        ).close()
        for _ in range(100):
            asked = "get", "poddisruptionbudgets.v1.policy", "--all-namespaces"
            if kubectl(at / "kubeconfig", *asked).returncode == 0:
                break
            time.sleep(0.1)
        yield
    finally:
        server.shutdown()
        server.server_close()
