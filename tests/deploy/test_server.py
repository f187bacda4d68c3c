"""The manifests of every target on a real API server: accepted, unchanged by a second time, and
each account allowed what it needs and nothing else."""

import concurrent.futures
import copy
import json
import re

import api
import kubernetes_validate
import pytest
import scan

NAMES = "raycluster", "deployment", "statefulset", "job", "service", "networkpolicy", "role"
NAMES += "persistentvolumeclaim", "persistentvolume", "storageclass", "resourcequota", "limitrange"
NAMES += "poddisruptionbudgets.v1.policy", "configmap", "serviceaccount", "rolebinding", "namespace"

# Of Kubernetes 1.20: volumes and claims are stored once more, the same; and ttlSecondsAfterFinished
# of a Job is a field that it drops, so that every apply sets it anew.
RESTLESS = "PersistentVolume", "PersistentVolumeClaim", "Job"


@pytest.fixture(scope="module")
def server(kubeconfig):
    """With the target kind on it."""
    _forget_claims(kubeconfig)
    made = api.applied(kubeconfig, api.rendered("targets/kind"))
    assert made.returncode == 0, made.stderr
    return kubeconfig


def live(kubeconfig) -> dict[str, dict]:
    """What the server holds of ours, by kind and name."""
    chosen = "--selector=app.kubernetes.io/part-of=medssl"
    asked = api.kubectl(
        kubeconfig, "get", ",".join(NAMES), "--all-namespaces", chosen, "--output=json"
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)["items"]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def without_version(each: dict) -> dict:
    each = copy.deepcopy(each)
    del each["metadata"]["resourceVersion"]
    return each


@pytest.mark.parametrize("target", api.TARGETS)
def test_a_target_is_accepted_and_a_second_time_changes_nothing(target, kubeconfig):
    objects = api.edited(api.rendered(f"targets/{target}"))
    _forget_claims(kubeconfig)
    made = api.applied(kubeconfig, objects)
    assert made.returncode == 0, made.stderr
    before = live(kubeconfig)
    assert {f"{each['kind']}/{each['metadata']['name']}" for each in objects} <= set(before)
    again = api.applied(kubeconfig, objects)
    assert again.returncode == 0, again.stderr
    after = live(kubeconfig)
    assert {k: without_version(v) for k, v in after.items()} == {
        k: without_version(v) for k, v in before.items()
    }
    for name, each in after.items():
        if not name.startswith(RESTLESS):
            then = before[name]["metadata"]["resourceVersion"]
            assert each["metadata"]["resourceVersion"] == then, name


def _forget_claims(kubeconfig) -> None:
    """Claims and jobs cannot be changed into those of another target."""
    asked = "delete", "pvc,job", "--all", "--namespace=medssl", "--ignore-not-found"
    api.kubectl(kubeconfig, *asked, "--wait=false")
    nothing = '[{"op": "remove", "path": "/metadata/finalizers"}]'
    for each in live(kubeconfig).values():
        if each["kind"] in RESTLESS and "deletionTimestamp" in each["metadata"]:
            name = f"{each['kind']}/{each['metadata']['name']}"
            api.kubectl(
                kubeconfig, "patch", name, "--namespace=medssl", "--type=json", f"--patch={nothing}"
            )


@pytest.mark.parametrize("target", api.TARGETS)
def test_the_pods_that_ray_s_operator_will_make_are_accepted(target, server):
    """Of a RayCluster the server looks at fields alone; of a Pod, at what they say together."""
    objects = []
    for each in scan.pods(api.edited(api.rendered(f"targets/{target}"))):
        if each.where.startswith("RayCluster/"):
            spec = copy.deepcopy(each.spec) | {"restartPolicy": "Never"}  # autoscaler of version 2
            for volume, path in (("shared-mem", "/dev/shm"), ("ray-logs", "/tmp/ray")):
                spec["volumes"].append({"name": volume, "emptyDir": {}})
                spec["containers"][0]["volumeMounts"].append({"name": volume, "mountPath": path})
            if each.autoscaler:
                options = spec["containers"][-1]
                for field in ("version", "upscalingMode", "idleTimeoutSeconds"):
                    del options[field]
            named = {"name": each.where.rpartition("/")[2], "namespace": "medssl"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": named | {"labels": each.labels}}
            objects.append(pod | {"spec": spec})
            kubernetes_validate.validate(objects[-1], "1.37", strict=True)
    assert len(objects) == {"kind": 2, "onprem": 2}.get(target, 3)
    made = api.applied(server, objects, "--dry-run=server")
    assert made.returncode == 0, made.stderr


def replaced(kind: str, path: str, value) -> list[dict]:
    """The target kind's object of that kind, with a mistake at a path of names and numbers."""
    (first, *_) = (e for e in api.rendered("targets/kind") if e["kind"] == kind)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    at = first
    for step in way:
        at = at[step]
    at[last] = value
    return [first]


MISTAKES = {
    "an unknown field": ("Deployment", "spec/replica", 1, "replica"),
    "an unknown field, deep": (
        *("Deployment", "spec/template/spec/containers/0/resources/limit", {}),
        "limit",
    ),
    "a wrong type": ("Deployment", "spec/replicas", "one", "replicas"),
    "a quantity that is none": (
        *("PersistentVolumeClaim", "spec/resources/requests/storage", "50 GB"),
        "quantities must match|quantity",
    ),
    "an address that was not edited": (
        *("NetworkPolicy", "spec/egress", [{"to": [{"ipBlock": {"cidr": "EDIT-API-SERVER/32"}}]}]),
        "CIDR",
    ),
    "a selector that finds no pod of its own": (
        *("Deployment", "spec/selector/matchLabels", {"app": "other"}),
        "selector",
    ),
    "an unknown field of Ray's": ("RayCluster", "spec/autoscaling", True, "autoscaling"),
    "a wrong type of Ray's": ("RayCluster", "spec/suspend", "yes", "suspend"),
    "a word that Ray does not know": (
        *("RayCluster", "spec/authOptions/mode", "password"),
        "authOptions.mode",
    ),
    "a group without a name": (
        *("RayCluster", "spec/workerGroupSpecs/0", {"minReplicas": 0, "maxReplicas": 1}),
        "groupName",
    ),
    "a rule of KubeRay's": (
        *("RayCluster", "spec/managedBy", "somebody"),
        "managedBy field value must be",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused(mistake, server):
    kind, path, value, told = MISTAKES[mistake]
    before = live(server)
    made = api.applied(server, replaced(kind, path, value))
    assert made.returncode != 0
    assert any(word in made.stderr for word in told.split("|")), made.stderr
    assert live(server) == before


ACCOUNTS = "head", "worker", "submitter", "mlflow", "postgres", "data"
AUTOSCALER = {"pods": "[get list watch]", "rayclusters.ray.io": "[get patch]"}
ANYONE = {  # what every account of a cluster may: ask what it may
    "selfsubjectaccessreviews.authorization.k8s.io": "[create]",
    "selfsubjectrulesreviews.authorization.k8s.io": "[create]",
}
NEVER = (
    "get secrets",
    "list secrets",
    "get secrets/medssl-ray",
    "create pods",
    "delete pods",
    "create pods --subresource=exec",
    "create pods --subresource=portforward",
    "get pods --subresource=log",
    "get nodes",
    "list namespaces",
    "get configmaps",
    "create serviceaccounts --subresource=token",
    "create rolebindings",
    "impersonate serviceaccounts",
    "delete rayclusters.ray.io",
    "create rayjobs.ray.io",
    "patch networkpolicies.networking.k8s.io",
    "get pods --namespace=default",
    "patch rayclusters.ray.io --namespace=default",
    "* *",
)


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_account_has_the_rights_that_it_needs_and_no_others(account, server):
    for namespace in ("medssl", "default", "kube-system"):
        asked = _as(server, account, "--list", "--no-headers", f"--namespace={namespace}")
        assert asked.returncode == 0, asked.stderr
        lines = [re.split(r"\s{2,}", line.strip()) for line in asked.stdout.splitlines()]
        rights = {line[0]: line[-1] for line in lines if not line[0].startswith("[")}
        mine = AUTOSCALER if (account, namespace) == ("head", "medssl") else {}
        assert rights == ANYONE | mine


def test_the_autoscaler_may_do_its_work_and_never_these(server):
    for resource, verbs in AUTOSCALER.items():
        for verb in verbs.strip("[]").split():
            assert _may(server, "head", f"{verb} {resource}")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda what: _may(server, "head", what), NEVER))
    assert [what for what, answer in zip(NEVER, answers, strict=True) if answer] == []


def _may(kubeconfig, account: str, what: str) -> bool:
    asked = _as(kubeconfig, account, *what.split())
    assert asked.stdout.strip() in ("yes", "no"), asked.stderr
    return asked.stdout.strip() == "yes"


def _as(kubeconfig, account: str, *asked: str):
    """kubectl auth can-i, in place of that account."""
    who = f"--as=system:serviceaccount:medssl:medssl-{account}"
    groups = "--as-group=system:serviceaccounts", "--as-group=system:serviceaccounts:medssl"
    authenticated = "--as-group=system:authenticated"
    place = () if any("--namespace" in each for each in asked) else ("--namespace=medssl",)
    return api.kubectl(kubeconfig, "auth", "can-i", *asked, *place, who, *groups, authenticated)


def test_a_right_too_many_is_seen(server):
    """The question asked above is one that can be answered with yes."""
    named = {"name": "too-many", "namespace": "medssl"}
    rights = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rights}/v1", "kind": "Role", "metadata": named}
    role["rules"] = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    binding = {"apiVersion": f"{rights}/v1", "kind": "RoleBinding", "metadata": named}
    binding["roleRef"] = {"apiGroup": rights, "kind": "Role", "name": "too-many"}
    account = {"kind": "ServiceAccount", "name": "medssl-worker", "namespace": "medssl"}
    binding["subjects"] = [account]
    assert api.applied(server, [role, binding]).returncode == 0
    try:
        assert _may(server, "worker", "get secrets")
    finally:
        asked = "delete", "role/too-many", "rolebinding/too-many", "--namespace=medssl"
        api.kubectl(server, *asked)
    assert not _may(server, "worker", "get secrets")
