"""What the manifests of every target promise, without a cluster."""

import copy
import ipaddress
import re
import shutil
import tomllib

import api
import kubernetes_validate
import pytest
import scan
import yaml

from medssl import cluster, rayjob

DEPLOY = api.ROOT / "deploy"
PYPROJECT = tomllib.loads((api.ROOT / "pyproject.toml").read_text())
KUBERNETES = "1.37"  # whose schemas the objects must meet; kube/ has an older server
OURS = re.compile(r"(^|/)medssl:")


@pytest.fixture(scope="module", params=api.TARGETS)
def target(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def objects(target) -> list[dict]:
    return api.rendered(f"targets/{target}")


def one(objects: list[dict], kind: str, name: str) -> dict:
    (found,) = (e for e in objects if (e["kind"], e["metadata"]["name"]) == (kind, name))
    return found


def pod(objects: list[dict], end: str) -> scan.Pod:
    (found,) = (each for each in scan.pods(objects) if each.where.endswith(end))
    return found


def test_there_is_nothing_that_must_not_be_there(objects):
    assert scan.scan(objects) == []


def test_nor_is_there_in_a_sweep_s_job(objects):
    """As `medssl cluster submit` makes it of the target: its submitter too."""
    of, shape = rayjob.labels("tiny", "0.1.0+abc"), one(objects, "RayCluster", "medssl")["spec"]
    made = rayjob.ray_job("tiny-1", "medssl", of, "tiny.py", shape, 60)
    assert scan.scan([*objects, made]) == []
    submitter, head = pod([made], "/submitter"), pod([made], "/head")
    assert scan.reaches(objects, submitter, head, 8265)
    assert on_spot(submitter.spec) is on_spot(head.spec)
    kept = submitter.spec["containers"][0]["env"]
    (asked,) = (e["valueFrom"]["secretKeyRef"] for e in kept if "valueFrom" in e)
    assert (asked["name"], [asked["key"]]) in cluster.SECRETS.items()


def test_core_kinds_are_those_of_a_recent_kubernetes(objects):
    for each in api.edited(objects):
        if each["kind"] != "RayCluster":
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_an_unknown_field_is_one_for_that_schema():
    broken = one(api.rendered("targets/kind"), "Deployment", "medssl-mlflow")
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_ray_is_the_lock_s_and_the_image_is_this_version_s(objects):
    lock = (api.ROOT / "requirements.lock").read_text()
    ray = re.search(r"^ray==(\S+)$", lock, re.MULTILINE)[1]
    assert one(objects, "RayCluster", "medssl")["spec"]["rayVersion"] == ray
    found = {c["image"] for each in scan.pods(objects) for _, c in each.containers()}
    mine = {image.rpartition(":")[2] for image in found if OURS.search(image)}
    assert mine == {PYPROJECT["project"]["version"]}
    assert {image for image in found if not OURS.search(image)} == {"postgres:17.6"}


def test_the_base_names_the_same_versions():
    """A target writes over its tags, so that a stale one would be seen by nobody else."""
    version = PYPROJECT["project"]["version"]
    for each in scan.pods(api.rendered("base")):
        for _, container in each.containers():
            assert container["image"] in (f"medssl:{version}", "postgres:17.6")


def test_names_are_those_that_the_parts_agreed_on(objects):
    names = {
        "ServiceAccount": {"head", "worker", "submitter", "mlflow", "postgres", "data"},
        "Service": {"mlflow", "postgres"},
        "Job": {"data"},
    }
    for kind, ends in names.items():
        found = {e["metadata"]["name"] for e in objects if e["kind"] == kind}
        assert found == {f"medssl-{end}" for end in ends}
    for each in objects:
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "medssl"  # `down` asks
    ray = one(objects, "RayCluster", "medssl")["spec"]
    assert ray["suspend"] is True
    assert ray["authOptions"] == {"mode": "token", "secretName": "medssl-ray"}
    asked = {}  # of Secrets: `medssl cluster up` makes these keys and no others
    for each in scan.pods(objects):
        for _, container in each.containers():
            for variable in container.get("env", ()):
                if ref := variable.get("valueFrom", {}).get("secretKeyRef"):
                    asked.setdefault(ref["name"], set()).add(ref["key"])
    asked["medssl-ray"] = {"auth_token"}  # KubeRay's
    assert asked == {name: set(keys) for name, keys in cluster.SECRETS.items()}


def test_what_pods_ask_for_is_there(objects):
    there = {(e["kind"], e["metadata"]["name"]) for e in objects}
    for each in scan.pods(objects):
        assert ("ServiceAccount", each.spec["serviceAccountName"]) in there
        mounted = {m["name"] for _, c in each.containers() for m in c.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in each.spec["volumes"]}, each.where
        for volume in each.spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there


def test_the_head_schedules_and_computes_nothing(objects):
    spec = one(objects, "RayCluster", "medssl")["spec"]
    told = spec["headGroupSpec"]["rayStartParams"]
    assert (told["num-cpus"], told["num-gpus"]) == ("0", "0")
    assert spec["autoscalerOptions"]["version"] == "v2"
    env = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert {e["name"] for e in env} == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    user, password = sorted(env, key=lambda e: e["name"], reverse=True)
    assert user["value"] == "medssl"  # no admin
    assert password["valueFrom"]["secretKeyRef"]["key"] == "sweep-password"
    assert told["dashboard-host"] == "0.0.0.0"  # for submitter and operator, by policy alone


def test_what_ray_s_pods_hold_is_bounded_and_nobody_moves_them(target, objects):
    spec = one(objects, "RayCluster", "medssl")["spec"]
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 300  # "give machines back"
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert int(group["rayStartParams"]["object-store-memory"]) <= 1e9  # it is the pod's memory
        stay = group["template"]["metadata"]["annotations"]
        assert stay["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert stay["karpenter.sh/do-not-disrupt"] == "true"
    for group in spec["workerGroupSpecs"]:
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        read = {mount["mountPath"] for mount in mounts if mount.get("readOnly")}
        assert read == {"/data", "/etc/medssl"}
    for each in scan.pods(objects):  # volumes belong to who runs there
        has = each.spec["securityContext"]
        assert has["fsGroup"] == has["runAsUser"], each.where


def test_a_head_is_not_evicted_and_tracking_restarts_one_by_one(objects):
    budgets = {e["metadata"]["name"]: e["spec"] for e in objects if "Budget" in e["kind"]}
    assert budgets["medssl-head"]["minAvailable"] > 32  # more than heads by quota
    head, mlflow = pod(objects, "/head").labels, pod(objects, "ployment/medssl-mlflow").labels
    assert scan.matches(budgets["medssl-head"]["selector"], head)
    assert not scan.matches(budgets["medssl-head"]["selector"], mlflow)
    assert budgets["medssl-tracking"]["maxUnavailable"] == 1
    assert scan.matches(budgets["medssl-tracking"]["selector"], mlflow)


def test_servers_have_probes_and_share_no_volume_with_their_next(objects):
    for kind, name in (("Deployment", "medssl-mlflow"), ("StatefulSet", "medssl-postgres")):
        made = one(objects, kind, name)["spec"]
        (container,) = made["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert {"httpGet", "exec"} & set(container[probe]), (name, probe)
        assert made["replicas"] == 1
    assert one(objects, "Deployment", "medssl-mlflow")["spec"]["strategy"] == {"type": "Recreate"}
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert "--auth-host=scram-sha-256" in env["POSTGRES_INITDB_ARGS"]
    told = one(objects, "ConfigMap", "medssl-mlflow")["data"]["basic_auth.ini"]
    cached = int(re.search(r"^auth_cache_ttl_seconds = (\d+)$", told, re.MULTILINE)[1])
    assert 30 <= cached <= 60  # at 0 MLflow takes a sixth of the calls


def test_the_api_server_is_looked_for_at_private_addresses_alone():
    for name in ("base", "targets/kind"):  # the others' are to be filled in
        (rule,) = policy(api.rendered(name), "head-to-api-server")["egress"]
        for peer in rule["to"]:
            assert ipaddress.ip_network(peer["ipBlock"]["cidr"]).is_private


def test_names_are_asked_of_the_cluster_s_dns_alone(objects):
    (rule,) = policy(objects, "all-to-dns")["egress"]
    (peer,) = rule["to"]
    assert peer["namespaceSelector"] == {
        "matchLabels": {"kubernetes.io/metadata.name": "kube-system"}
    }
    assert {port["port"] for port in rule["ports"]} == {53}


def test_workers_come_when_they_are_needed_and_tell_ray_when_they_go(target, objects):
    spec = one(objects, "RayCluster", "medssl")["spec"]
    groups = spec["workerGroupSpecs"]
    assert [g["groupName"] for g in groups] == {
        "kind": ["cpu"],
        "onprem": ["gpu-on-demand"],
    }.get(target, ["gpu-spot", "gpu-on-demand"])
    assert all(g["minReplicas"] == g["replicas"] == 0 < g["maxReplicas"] for g in groups)
    assert sorted(groups, key=lambda g: -g["priority"]) == groups
    for group in groups:
        worker = group["template"]["spec"]
        assert worker["terminationGracePeriodSeconds"] == 60
        asked = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert asked == ["python", "/etc/medssl/drain.py"]
        assert "restartPolicy" not in worker  # the autoscaler of version 2 takes no other
    # Ray looks at a priority only where two groups fit a trial equally well
    shapes = [g["template"]["spec"]["containers"][0]["resources"] for g in groups]
    assert all(shape == shapes[0] for shape in shapes)
    quota = one(objects, "ResourceQuota", "medssl")["spec"]["hard"]["requests.nvidia.com/gpu"]
    assert ("nvidia.com/gpu" in shapes[0]["limits"]) == (int(quota) > 0) == (target != "kind")


def test_the_quota_bounds_what_a_bill_can_be(target, objects):
    hard = one(objects, "ResourceQuota", "medssl")["spec"]["hard"]
    assert (hard["services.loadbalancers"], hard["services.nodeports"]) == ("0", "0")
    groups = one(objects, "RayCluster", "medssl")["spec"]["workerGroupSpecs"]
    gpus = sum(group["maxReplicas"] for group in groups) if target != "kind" else 0
    assert int(hard["requests.nvidia.com/gpu"]) == gpus  # one sweep may have all of it
    assert int(hard["pods"]) > gpus
    assert int(hard["count/rayjobs.ray.io"]) > 0


def on_spot(spec: dict) -> bool | None:
    """Whether a pod asks for a spot machine; None where it may get either."""
    chosen = spec.get("nodeSelector", {})
    if chosen.get("karpenter.sh/capacity-type"):
        return chosen["karpenter.sh/capacity-type"] == "spot"
    if chosen.get("cloud.google.com/gke-spot"):
        return True
    return False if "gke-spot, operator: DoesNotExist" in str(spec).replace("'", "") else None


@pytest.mark.parametrize("cloud", ["gke-spot", "eks-spot"])
def test_what_must_not_be_preempted_is_on_demand(cloud):
    found = {
        p.where.split("/", 1)[1]: on_spot(p.spec)
        for p in scan.pods(api.rendered(f"targets/{cloud}"))
    }
    assert found.pop("medssl-data") is None  # it may be, and is tried again
    assert found == {
        "medssl-mlflow": False,
        "medssl-postgres": False,
        "medssl/head": False,
        "medssl/gpu-spot": True,
        "medssl/gpu-on-demand": False,
    }


@pytest.mark.parametrize(
    ("name", "store"),
    [("kind", True), ("onprem", True), ("gke-spot", "gs://"), ("eks-spot", "s3://")],
)
def test_the_store_is_a_volume_or_a_bucket(name, store):
    objects = api.rendered(f"targets/{name}")
    claims = {e["metadata"]["name"] for e in objects if e["kind"] == "PersistentVolumeClaim"}
    said = one(objects, "ConfigMap", "medssl-settings")["data"]["MEDSSL_STORE"]
    ray = [p for p in scan.pods(objects) if p.where.startswith("RayCluster")]
    mounted = {m["mountPath"] for p in ray for m in p.spec["containers"][0]["volumeMounts"]}
    if store is True:
        assert said == "/store"
        assert "medssl-store" in claims
        assert all("store" in {v["name"] for v in p.spec["volumes"]} for p in ray)
        assert "/store" in mounted
    else:
        assert said.startswith(store)
        assert "medssl-store" not in claims
        assert "/store" not in mounted


def test_a_target_is_short_and_what_is_to_be_edited_is_in_one_place(target):
    folder = DEPLOY / "targets" / target
    told = (folder / "kustomization.yaml").read_text()
    head = "\n".join(line for line in told.splitlines() if line.startswith("#"))
    assert f"medssl cluster up deploy/targets/{target}" in head
    assert re.search(r"Cost[ :(]", head)
    assert "Success:" in head
    for file in folder.glob("*.yaml"):
        text = file.read_text()
        assert text.startswith("# "), file
        assert len(text.splitlines()) <= 80, file
        assert file.name == "kustomization.yaml" or "EDIT" not in text
    for line in told.splitlines():
        if "EDIT-" in line:  # a word says what to put there: on this line or the one of the patch
            at = told.splitlines().index(line)
            assert any("# EDIT" in near for near in told.splitlines()[max(0, at - 3) : at + 1]), (
                line
            )
    assert "EDIT-" not in str(api.edited(api.rendered(f"targets/{target}")))


@pytest.mark.parametrize("option", ["kueue"])
def test_an_option_can_be_added_to_a_target(option, tmp_path):
    """Beside the targets, for Kustomize reads nothing above the folder that it builds."""
    folder = tmp_path / "deploy"
    shutil.copytree(DEPLOY, folder)
    file = folder / "targets" / "eks-spot" / "kustomization.yaml"
    text = file.read_text()
    file.write_text(text.replace("components: [", f"components: [../../options/{option}, "))
    built = api.kubectl(None, "kustomize", str(file.parent))
    assert built.returncode == 0, built.stderr
    objects = list(yaml.safe_load_all(built.stdout))
    ours = [e for e in objects if "kueue" not in e["apiVersion"]]
    assert scan.scan(ours) == []
    ray = one(objects, "RayCluster", "medssl")
    assert ray["metadata"]["annotations"] == {"medssl.io/queue": "medssl"}
    assert "kueue.x-k8s.io/queue-name" not in ray["metadata"]["labels"]  # Kueue would start it
    assert ray["spec"]["enableInTreeAutoscaling"] is False


# --- network: exactly these paths -------------------------------------------------------------

SUBMITTER = scan.Pod("submitter", {"app.kubernetes.io/component": "submitter"}, {})
STRANGER = scan.Pod("stranger", {}, {})
OPERATOR = scan.Pod("operator", {"app.kubernetes.io/name": "kuberay-operator"}, {})
PORTS = 5000, 5432, 6379, 8080, 8265, 10001, 52365


def test_exactly_the_paths_that_are_needed_are_open(objects):
    made = list(scan.pods(objects))
    kinds = {}  # one worker stands for all groups
    for each in made:
        label = each.labels["app.kubernetes.io/component"]
        kinds["head" if each.where.endswith("/head") else "worker" if label == "ray" else label] = (
            each
        )
    kinds["submitter"] = SUBMITTER
    sources = {name: (each, "medssl") for name, each in kinds.items()}
    sources["stranger inside"] = STRANGER, "medssl"
    sources["stranger"] = STRANGER, "default"
    sources["a submitter elsewhere"] = SUBMITTER, "default"
    sources["operator"] = OPERATOR, "kuberay-operator"
    sources["beside the operator"] = STRANGER, "kuberay-operator"
    open = {
        (name, to, port)
        for name, (source, of) in sources.items()
        for to, pod in kinds.items()
        for port in PORTS
        if scan.reaches(objects, source, pod, port, of)
    }
    among = {(a, b, p) for a in ("head", "worker") for b in ("head", "worker") for p in PORTS}
    assert open == among | {
        ("submitter", "head", 8265),
        ("operator", "head", 8265),
        ("head", "mlflow", 5000),
        ("mlflow", "postgres", 5432),
    }


@pytest.mark.parametrize(
    ("name", "ways"),
    [("kind", set()), ("onprem", set()), ("gke-spot", {80, 988, 443}), ("eks-spot", {443})],
)
def test_only_where_the_store_is_a_bucket_do_workers_leave_the_cluster(name, ways):
    objects = api.rendered(f"targets/{name}")
    worker = next(p for p in scan.pods(objects) if p.labels.get("ray.io/node-type") == "worker")
    found = {
        port["port"]
        for policy in scan.policies(objects, worker, "Egress")
        for rule in policy["spec"].get("egress", ())
        if any("ipBlock" in peer for peer in rule["to"])
        for port in rule["ports"]
    }
    assert found - {53} == ways


# --- planted: each defect is found, and nothing else is said -----------------------------------


def container(objects: list[dict], end: str = "Deployment/medssl-mlflow") -> dict:
    return pod(objects, end).spec["containers"][0]


def drop(objects: list[dict], kind: str, name: str) -> None:
    objects.remove(one(objects, kind, name))


def policy(objects: list[dict], name: str) -> dict:
    return one(objects, "NetworkPolicy", name)["spec"]


def ray(objects: list[dict]) -> dict:
    return one(objects, "RayCluster", "medssl")["spec"]


PLANTED = {
    "a secret": (
        lambda o: o.append({"kind": "Secret", "metadata": {"name": "x"}, "data": {"a": "YQ=="}}),
        r"^Secret/x is a Secret",
    ),
    "a password written out": (
        lambda o: container(o)["env"].append({"name": "DB_PASSWORD", "value": "hunter2"}),
        r"medssl-mlflow/mlflow DB_PASSWORD is written out",
    ),
    "a password in an address": (
        lambda o: container(o)["args"].append("--uri=postgresql://a:hunter2@b/c"),
        r"args\[5\] looks like a secret",
    ),
    "a random key": (
        lambda o: one(o, "ConfigMap", "medssl-settings")["data"].update(X="0123456789abcdef" * 2),
        r"data.X looks like a secret",
    ),
    "a password as an argument": (
        lambda o: (
            container(o)["env"].append(
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
            )
            or container(o)["args"].append("--key=$(SECRET)")
        ),
        r"hands a secret over as an argument",
    ),
    "a token in the settings": (
        lambda o: one(o, "ConfigMap", "medssl-settings")["data"].update(API_TOKEN="x"),
        r"API_TOKEN is a secret's name",
    ),
    "latest": (lambda o: container(o).update(image="medssl:latest"), r"tagged latest"),
    "no tag": (lambda o: container(o).update(image="here:5000/medssl"), r"has no tag"),
    "no Pod Security": (
        lambda o: one(o, "Namespace", "medssl")["metadata"]["labels"].pop(
            "pod-security.kubernetes.io/enforce"
        ),
        r"Namespace/medssl does not enforce",
    ),
    "another namespace": (
        lambda o: one(o, "Service", "medssl-mlflow")["metadata"].update(namespace="default"),
        r"Service/medssl-mlflow is in the namespace default",
    ),
    "a privileged container": (
        lambda o: container(o)["securityContext"].update(privileged=True),
        r"is privileged",
    ),
    "root": (
        lambda o: container(o)["securityContext"].update(runAsUser=0),
        r"may run as root: no runAsUser",
    ),
    "a pod that is root's": (
        lambda o: pod(o, "medssl-data").spec["securityContext"].pop("runAsUser"),
        r"may run as root: the pod",
    ),
    "a writable root": (
        lambda o: container(o, "/head")["securityContext"].update(readOnlyRootFilesystem=False),
        r"/head/ray readOnlyRootFilesystem is False",
    ),
    "capabilities": (
        lambda o: container(o)["securityContext"]["capabilities"].update(add=["NET_RAW"]),
        r"capabilities is .*NET_RAW",
    ),
    "no seccomp": (
        lambda o: container(o)["securityContext"].pop("seccompProfile"),
        r"seccompProfile is None",
    ),
    "an autoscaler that is not locked": (
        lambda o: ray(o)["autoscalerOptions"]["securityContext"].pop("allowPrivilegeEscalation"),
        r"/head/autoscaler allowPrivilegeEscalation is None",
    ),
    "an init container that is not locked": (
        lambda o: pod(o, "Deployment/medssl-mlflow").spec["initContainers"][0].pop("resources"),
        r"medssl-mlflow/users (requests|limits) no (cpu|memory)",
    ),
    "the node's network": (
        lambda o: pod(o, "/gpu-spot").spec.update(hostNetwork=True),
        r"/gpu-spot hostNetwork is on",
    ),
    "the node's files": (
        lambda o: (
            pod(o, "/gpu-spot").spec["volumes"].append({"name": "root", "hostPath": {"path": "/"}})
        ),
        r"root is a folder of the node",
    ),
    "the node's port": (
        lambda o: container(o)["ports"][0].update(hostPort=5000),
        r"opens the node's port 5000",
    ),
    "no limit": (
        lambda o: container(o)["resources"]["limits"].pop("memory"),
        r"medssl-mlflow/mlflow limits no memory",
    ),
    "a GPU worker that may take more": (
        lambda o: container(o, "/gpu-spot")["resources"].update(
            requests={"cpu": "1", "memory": "1Gi"}
        ),
        r"has a GPU, and requests that are not its limits",
    ),
    "a token for all": (
        lambda o: pod(o, "/gpu-spot").spec.pop("automountServiceAccountToken"),
        r"/gpu-spot mounts a token by default",
    ),
    "a token in the driver's container": (
        lambda o: container(o, "/head")["volumeMounts"].append(
            {"name": "api", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        ),
        r"/head/ray mounts a token",
    ),
    "the default account": (
        lambda o: pod(o, "/gpu-spot").spec.pop("serviceAccountName"),
        r"/gpu-spot runs as no account of ours",
    ),
    "an account that hands out its token": (
        lambda o: one(o, "ServiceAccount", "medssl-worker").pop("automountServiceAccountToken"),
        r"ServiceAccount/medssl-worker hands out its token",
    ),
    "nothing is denied": (
        lambda o: (
            drop(o, "NetworkPolicy", "deny-all"),
            drop(o, "NetworkPolicy", "mlflow-from-head"),
        ),
        r"^Deployment/medssl-mlflow no policy for its Ingress: open port 5000|"
        r"^Job/medssl-data no policy for its Ingress",
    ),
    "an open door": (
        lambda o: policy(o, "mlflow-from-head")["ingress"][0].pop("from"),
        r"mlflow-from-head lets anyone in",
    ),
    "all namespaces": (
        lambda o: policy(o, "mlflow-from-head")["ingress"][0]["from"].append(
            {"namespaceSelector": {}}
        ),
        r"mlflow-from-head lets in more than pods",
    ),
    "the way out": (
        lambda o: policy(o, "all-to-dns")["egress"].append({"ports": [{"port": 443}]}),
        r"all-to-dns lets out to anyone",
    ),
    "the metadata server": (
        lambda o: policy(o, "data-to-the-internet")["egress"][0]["to"][0]["ipBlock"].pop("except"),
        r"data-to-the-internet lets out to the metadata server",
    ),
    "any port": (
        lambda o: policy(o, "head-to-api-server")["egress"][0].pop("ports"),
        r"head-to-api-server lets out on any port",
    ),
    "a load balancer": (
        lambda o: one(o, "Service", "medssl-mlflow")["spec"].update(type="LoadBalancer"),
        r"medssl-mlflow is a LoadBalancer",
    ),
}


@pytest.fixture(scope="module")
def eks() -> list[dict]:
    return api.rendered("targets/eks-spot")


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(defect, eks):
    plant, told = PLANTED[defect]
    objects = copy.deepcopy(eks)
    plant(objects)
    found = [" ".join(finding) for finding in scan.scan(objects)]
    assert found
    assert [each for each in found if not re.search(told, each)] == []


def test_a_rayjob_s_pods_are_looked_at_too(eks):
    spec = copy.deepcopy(ray(eks))
    submitter = {"metadata": {}, "spec": {"containers": [{"name": "s", "image": "medssl"}]}}
    job = {"kind": "RayJob", "metadata": {"name": "j", "namespace": "medssl"}}
    job["spec"] = {"rayClusterSpec": spec, "submitterPodTemplate": submitter}
    found = scan.scan([*eks, job])
    assert {f.where.rsplit("/s", 1)[0] for f in found} <= {"RayJob/j/submitter", "RayJob/j"}
    assert {f.what for f in found} >= {"its image has no tag", "runs as no account of ours"}
