"""What tests of deploy/ share: one API server for a session, stopped at its end."""

import api
import pytest


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory):
    """Of a Kubernetes API server with KubeRay's kinds; skips where there is none."""
    with api.served(tmp_path_factory.mktemp("kube")) as config:
        yield config
