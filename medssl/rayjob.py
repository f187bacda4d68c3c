"""A sweep as Kubernetes is asked to run it: plain objects, no client.

    sweep file + the RayCluster that `deploy/` has set up -> ConfigMap (the file), RayJob

How nodes look (GPUs, spot or not, volumes, rights) is the cluster's own: its RayCluster is copied
into the job, whose head gets the sweep's file and is told which nodes there may be. A failed driver
is tried again in a new cluster and finds in the store what is done; trials that failed with a word
are not, since the driver's end is then no failure (`--failed-is-done`).
Fields: https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html
"""

import copy
import hashlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from medssl.spec import Sweep

LONGEST = 47  # letters of a RayJob's name that KubeRay takes
FILES = "/sweep"  # where the head finds the sweep's file
MOST_BYTES = 900_000  # of the file: a ConfigMap holds one MiB
RETRIES = 3  # clusters after the first, where the head is lost
SUBMITTERS = 10  # pods after the first, whose way to the head broke: a job may take weeks
MANY = 10_000  # nodes of a group: one without a maximum has two thousand million
READY_S = 1800  # until the head is there
AGAIN_S = {"SUCCEEDED": 60, "FAILED": 600}  # seconds that a cluster is kept after its job, for logs
SUBMITTER = {"cpu": "500m", "memory": "512Mi"}
TOKEN = "medssl-ray"  # the Secret
WHERE = "nodeSelector", "affinity", "tolerations", "priorityClassName"
STAY = "cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"
QUEUE = "kueue.x-k8s.io/queue-name"
PART_OF, SWEEP, CODE = "app.kubernetes.io/part-of", "medssl.io/sweep", "medssl.io/code"


class Group(NamedTuple):
    """Nodes of one kind, as Ray will see them."""

    name: str
    cpu: int
    gpu: float
    most: int


def groups(shape: dict) -> list[Group]:
    """Worker groups of a RayCluster's spec; Ray counts cores and GPUs by limits, else requests."""
    found = []
    for group in shape.get("workerGroupSpecs") or []:
        asked = group["template"]["spec"]["containers"][0].get("resources", {})
        has = {**asked.get("requests", {}), **asked.get("limits", {})}
        told = group.get("rayStartParams") or {}
        cpu = int(told.get("num-cpus", math.ceil(cores(str(has.get("cpu", "0"))))))
        gpu = float(told.get("num-gpus", has.get("nvidia.com/gpu", 0)))
        most = min(int(group.get("maxReplicas") or 0), MANY)
        found.append(Group(group["groupName"], cpu, gpu, most))
    return found


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def fit(sweep: Sweep, nodes: list[Group]) -> None:
    """ValueError where one of the sweep's trials fits no node, as it would wait for ever."""
    resources, any_gpu = sweep.resources, any(group.gpu for group in nodes)
    for spec in {cell.encoder.id: cell.encoder for cell in sweep.cells()}.values():
        gpu = resources.share(spec, any_gpu)
        if not any(g.most and resources.cpu <= g.cpu and gpu <= g.gpu for g in nodes):
            has = "; ".join(f"{g.name}: {g.cpu} and {g.gpu:g}, up to {g.most}" for g in nodes)
            raise ValueError(
                f"a trial of {spec.method} on {spec.backbone} takes {resources.cpu} cores and "
                f"{gpu:g} GPUs, and no node of the cluster's has them ({has or 'no groups'}): "
                f"change the sweep's Resources, or the groups in deploy/targets"
            )


def name(sweep: str, code: str, text: str) -> str:
    """Of the job: the same sweep file and code are the same job."""
    digest = hashlib.sha256(f"{code}\n{text}".encode()).hexdigest()[:8]
    return f"{slug(sweep, LONGEST - 9)}-{digest}"


def slug(text: str, longest: int = 63) -> str:
    """As a name of Kubernetes', which begins with a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"s-{plain}")[:longest].strip("-")


def labels(sweep: str, code: str) -> dict[str, str]:
    version = re.sub(r"[^\w.-]", "-", code)[:63].strip("-_.")
    return {PART_OF: "medssl", SWEEP: slug(sweep), CODE: version}


def config_map(job: str, namespace: str, of: dict[str, str], file: Path, text: str) -> dict:
    """The sweep's file; ValueError where it is too large to travel, or its name is no plain word:
    KubeRay puts it into a shell's line as it is."""
    if not re.fullmatch(r"[\w-][\w.-]*\.py", file.name, re.ASCII):
        raise ValueError(f"{file.name!r}: name the sweep's file in letters, digits, - and _ alone")
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"{file} has more than {MOST_BYTES:,} bytes: a sweep is a short file")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job, "namespace": namespace, "labels": of},
        "data": {file.name: text},
    }


def ray_job(
    job: str,
    namespace: str,
    of: dict[str, str],
    file: str,
    shape: dict,
    deadline_s: int,
    asked: tuple[str, ...] = (),
    queue: str = "",
) -> dict:
    """`shape`: the spec of a RayCluster; `asked`: more options of `medssl run`; `queue`: of
    Kueue's, in which the job waits."""
    cluster = copy.deepcopy(shape)
    cluster.pop("suspend", None)
    pod = cluster["headGroupSpec"]["template"]["spec"]
    head = pod["containers"][0]
    may_have = [{"CPU": g.cpu, "GPU": g.gpu, "most": g.most} for g in groups(shape)]
    _set(head, "env", {"name": "MEDSSL_NODES", "value": json.dumps(may_have)})
    _set(head, "volumeMounts", {"name": "sweep", "mountPath": FILES, "readOnly": True})
    _set(pod, "volumes", {"name": "sweep", "configMap": {"name": job}})
    rules = [
        {
            "policy": "DeleteCluster",
            "condition": {"jobStatus": status, "ttlSeconds": seconds},
        }
        for status, seconds in AGAIN_S.items()
    ] + [  # without a status: deadlines, a head that was never there
        {
            "policy": "DeleteCluster",
            "condition": {"jobDeploymentStatus": "Failed", "ttlSeconds": AGAIN_S["FAILED"]},
        }
    ]
    ending = {"deletionStrategy": {"deletionRules": rules}}
    if queue:  # Kueue takes no rules: it suspends jobs, which KubeRay allows with these alone
        of = of | {QUEUE: queue}
        ending = {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": AGAIN_S["SUCCEEDED"]}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job, "namespace": namespace, "labels": of},
        "spec": {
            "entrypoint": " ".join(["medssl run", f"{FILES}/{file}", "--failed-is-done", *asked]),
            "submissionMode": "K8sJobMode",
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": deadline_s,
            "preRunningDeadlineSeconds": READY_S,
            **ending,
            "submitterConfig": {"backoffLimit": SUBMITTERS},
            "submitterPodTemplate": _submitter(cluster["headGroupSpec"]["template"], of),
            "rayClusterSpec": cluster,
        },
    }


def _set(of: dict, field: str, entry: dict) -> None:
    """An entry of a list of named ones, in the place of one that has its name."""
    of[field] = [one for one in of.get(field) or [] if one["name"] != entry["name"]] + [entry]


def _submitter(template: dict, of: dict[str, str]) -> dict:
    """The pod that hands the job over and repeats what its driver says, beside the head and no
    easier to move: where it is lost too often, the job is. KubeRay adds command and address.
    """
    pod = template["spec"]
    head = pod["containers"][0]
    token = {"secretKeyRef": {"name": TOKEN, "key": "auth_token"}}
    container = {
        "name": "ray-job-submitter",
        "image": head["image"],
        "resources": {"requests": SUBMITTER, "limits": SUBMITTER},
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": token},  # not every KubeRay heeds secretName
        ],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    for field in ("securityContext", "imagePullPolicy"):
        if field in head:
            container[field] = copy.deepcopy(head[field])
    spec = {
        "serviceAccountName": "medssl-submitter",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    for field in ("securityContext", "imagePullSecrets", *WHERE):
        if field in pod:
            spec[field] = copy.deepcopy(pod[field])
    about = {"labels": of | {"app.kubernetes.io/component": "submitter"}}
    has = template.get("metadata", {}).get("annotations", {})
    if stay := {name: has[name] for name in STAY if name in has}:
        about["annotations"] = stay
    return {"metadata": about, "spec": spec}
