"""What must not be in manifests: each function returns its findings, none where all is well.

    scan(objects) -> [(where, what), ...]      of one rendered target

It looks at what pods will be, so at KubeRay's too: the head's autoscaler is a container like any
other, and the operator's label ray.io/node-type is there. It reads no cluster and knows no target.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Finding(NamedTuple):
    where: str  # kind/name, then pod and container
    what: str


class Pod(NamedTuple):
    where: str
    labels: dict
    spec: dict
    autoscaler: bool = False  # its last container is Ray's autoscaler

    def containers(self) -> Iterator[tuple[str, dict]]:
        for container in [*self.spec.get("initContainers", ()), *self.spec.get("containers", ())]:
            yield f"{self.where}/{container.get('name')}", container


def scan(objects: list[dict]) -> list[Finding]:
    """All findings of all functions below."""
    looks = namespaces, secrets, images, privileges, resources, tokens, guards, doors
    return [finding for look in looks for finding in look(objects)]


def pods(objects: list[dict]) -> Iterator[Pod]:
    """Every pod that these objects come to."""
    for each in objects:
        where, spec = f"{each['kind']}/{each['metadata']['name']}", each.get("spec", {})
        match each["kind"]:
            case "Pod":
                yield Pod(where, each["metadata"].get("labels", {}), spec)
            case "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicaSet":
                yield _templated(where, spec["template"])
            case "CronJob":
                yield _templated(where, spec["jobTemplate"]["spec"]["template"])
            case "RayCluster":
                yield from _ray(where, spec)
            case "RayJob":
                yield from _ray(where, spec.get("rayClusterSpec", {}))
                if "submitterPodTemplate" in spec:
                    yield _templated(f"{where}/submitter", spec["submitterPodTemplate"])


def _templated(where: str, template: dict, **labels: str) -> Pod:
    told = template.get("metadata", {}).get("labels", {})
    return Pod(where, told | labels, template["spec"])


def _ray(where: str, spec: dict) -> Iterator[Pod]:
    if "headGroupSpec" in spec:
        node = {"ray.io/node-type": "head"}
        head = _templated(f"{where}/head", spec["headGroupSpec"]["template"], **node)
        if scales := bool(spec.get("enableInTreeAutoscaling")):
            first = head.spec["containers"][0]
            own = {"name": "autoscaler", "image": first["image"], **spec["autoscalerOptions"]}
            head = head._replace(spec=head.spec | {"containers": [*head.spec["containers"], own]})
        yield head._replace(autoscaler=scales)
    for group in spec.get("workerGroupSpecs", ()):
        node = {"ray.io/node-type": "worker"}
        yield _templated(f"{where}/{group['groupName']}", group["template"], **node)


def namespaces(objects: list[dict]) -> Iterator[Finding]:
    """Without Pod Security, or with anything outside of the namespaces that are here."""
    here = set()
    for each in objects:
        if each["kind"] == "Namespace":
            here.add(each["metadata"]["name"])
            labels = each["metadata"].get("labels", {})
            for mode in ("enforce", "audit", "warn"):
                if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                    yield Finding(_name(each), f"does not {mode} Pod Security restricted")
    for each in objects:
        if (namespace := each["metadata"].get("namespace")) and namespace not in here:
            yield Finding(_name(each), f"is in the namespace {namespace}, which is not ours")


SECRET = re.compile(r"passw|token|secret|credential|api_?key|private", re.IGNORECASE)
LOOKS_RANDOM = re.compile(r"\b[0-9a-f]{32,}\b|-----BEGIN|://[^/\s:@]+:[^/\s@$]+@")


def secrets(objects: list[dict]) -> Iterator[Finding]:
    """A secret's data, or what looks like one, anywhere; one handed over as an argument."""
    for each in objects:
        if each["kind"] == "Secret":
            yield Finding(_name(each), "is a Secret: those are made when a target is applied")
        for path, value in _leaves(each):
            if isinstance(value, str) and LOOKS_RANDOM.search(value):
                yield Finding(_name(each), f"{path} looks like a secret")
        if each["kind"] == "ConfigMap":
            for name in each.get("data", {}):
                if SECRET.search(name):
                    yield Finding(_name(each), f"{name} is a secret's name")
    for pod in pods(objects):
        for where, container in pod.containers():
            named = {e["name"] for e in container.get("env", ()) if SECRET.search(e["name"])}
            for variable in container.get("env", ()):
                if variable["name"] in named and "value" in variable:
                    yield Finding(where, f"{variable['name']} is written out")
            for word in [*container.get("command", ()), *container.get("args", ())]:
                if any(f"$({name})" in word or f"${name}" in word for name in named):
                    yield Finding(where, f"hands a secret over as an argument: {word}")


def images(objects: list[dict]) -> Iterator[Finding]:
    """An image that is another one tomorrow."""
    for pod in pods(objects):
        for where, container in pod.containers():
            tag = container.get("image", "").rpartition("/")[2].partition("@")[0].partition(":")[2]
            if not tag and "@sha256:" not in container.get("image", ""):
                yield Finding(where, "its image has no tag")
            elif tag == "latest":
                yield Finding(where, "its image is tagged latest")


LOCKED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def privileges(objects: list[dict]) -> Iterator[Finding]:
    """Root, privileges, capabilities, the node's own network, processes or files."""
    for pod in pods(objects):
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                yield Finding(pod.where, f"{name} is on")
        if not pod.spec.get("securityContext", {}).get("runAsUser"):
            yield Finding(pod.where, "may run as root: the pod has no runAsUser")
        for volume in pod.spec.get("volumes", ()):
            if "hostPath" in volume:
                yield Finding(pod.where, f"{volume['name']} is a folder of the node")
        for where, container in pod.containers():
            has = container.get("securityContext", {})
            for name, value in LOCKED.items():
                if has.get(name) != value:
                    yield Finding(where, f"{name} is {has.get(name)}, not {value}")
            if not has.get("runAsUser"):
                yield Finding(where, "may run as root: no runAsUser")
            if has.get("privileged"):
                yield Finding(where, "is privileged")
            for port in container.get("ports", ()):
                if "hostPort" in port:
                    yield Finding(where, f"opens the node's port {port['hostPort']}")


def resources(objects: list[dict]) -> Iterator[Finding]:
    """A container without requests or limits, or with GPUs and limits that are not its requests."""
    for pod in pods(objects):
        for where, container in pod.containers():
            has = container.get("resources", {})
            for kind in ("requests", "limits"):
                for name in ("cpu", "memory"):
                    if name not in has.get(kind, {}):
                        yield Finding(where, f"{kind} no {name}")
            gpus = any("gpu" in name for name in has.get("limits", {}))
            if gpus and has.get("requests") != has.get("limits"):
                yield Finding(where, "has a GPU, and requests that are not its limits")


def tokens(objects: list[dict]) -> Iterator[Finding]:
    """A token of the API server anywhere but in the autoscaler's container."""
    accounts = {e["metadata"]["name"]: e for e in objects if e["kind"] == "ServiceAccount"}
    for name, account in accounts.items():
        if account.get("automountServiceAccountToken") is not False:
            yield Finding(f"ServiceAccount/{name}", "hands out its token by default")
    for pod in pods(objects):
        if pod.spec.get("serviceAccountName") not in accounts:
            yield Finding(pod.where, "runs as no account of ours")
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield Finding(pod.where, "mounts a token by default")
        tokened = {
            volume["name"]
            for volume in pod.spec.get("volumes", ())
            for source in volume.get("projected", {}).get("sources", ())
            if "serviceAccountToken" in source
        }
        for where, container in pod.containers():
            if pod.autoscaler and container["name"] == "autoscaler":
                continue
            for mount in container.get("volumeMounts", ()):
                if mount["name"] in tokened:
                    yield Finding(where, "mounts a token")


def guards(objects: list[dict]) -> Iterator[Finding]:
    """A pod that no policy selects, in one direction or both; a port of it that none guards."""
    for pod in pods(objects):
        for direction in ("Ingress", "Egress"):
            if not any(True for _ in policies(objects, pod, direction)):
                ports = [str(p["containerPort"]) for _, c in pod.containers() for p in _ports(c)]
                open = f": open port {', '.join(ports)}" if ports and direction == "Ingress" else ""
                yield Finding(pod.where, f"no policy for its {direction}{open}")


METADATA = "169.254.0.0/16"


def doors(objects: list[dict]) -> Iterator[Finding]:
    """What a policy leaves open to anyone, and what is reached from outside of the cluster."""
    for each in objects:
        if each["kind"] == "Ingress":
            yield Finding(_name(each), "is reached from outside")
        if each["kind"] == "Service" and each["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield Finding(_name(each), f"is a {each['spec']['type']}, reached from outside")
        if each["kind"] != "NetworkPolicy":
            continue
        for rule in each["spec"].get("ingress", ()):
            if not rule.get("from"):
                yield Finding(_name(each), "lets anyone in")
            for peer in rule.get("from", ()):
                if "ipBlock" in peer or peer.get("namespaceSelector") == {}:
                    yield Finding(_name(each), "lets in more than pods that are named")
        for rule in each["spec"].get("egress", ()):
            if not rule.get("to"):
                yield Finding(_name(each), "lets out to anyone")
            for peer in rule.get("to", ()):
                block = peer.get("ipBlock", {})
                if block.get("cidr") == "0.0.0.0/0" and METADATA not in block.get("except", ()):
                    yield Finding(_name(each), "lets out to the metadata server")
                if block and not rule.get("ports"):
                    yield Finding(_name(each), "lets out on any port")


def policies(objects: list[dict], pod: Pod, direction: str) -> Iterator[dict]:
    """That select a pod, in one direction: Ingress or Egress."""
    for each in objects:
        if each["kind"] != "NetworkPolicy" or direction not in each["spec"]["policyTypes"]:
            continue
        if matches(each["spec"]["podSelector"], pod.labels):
            yield each


def reaches(objects: list[dict], source: Pod, target: Pod, port: int, of: str = "medssl") -> bool:
    """Whether policies let `source`, a pod in the namespace `of`, open that port of `target`.

    Both sides must agree; a source elsewhere is under no policy of ours.
    """
    here = of == "medssl"
    out = not here or _let(objects, source, "Egress", "to", target, "medssl", port)
    return out and _let(objects, target, "Ingress", "from", source, of, port)


def _let(
    objects: list[dict], pod: Pod, direction: str, side: str, other: Pod, of: str, port: int
) -> bool:
    mine = list(policies(objects, pod, direction))
    rules = [rule for each in mine for rule in each["spec"].get(direction.lower(), ())]
    return not mine or any(
        (not rule.get("ports") or any(p.get("port") == port for p in rule["ports"]))
        and (not rule.get(side) or any(_is(peer, other, of) for peer in rule[side]))
        for rule in rules
    )


def _is(peer: dict, pod: Pod, of: str) -> bool:
    if "ipBlock" in peer:
        return False  # those name machines; pods are named by labels
    names = {"kubernetes.io/metadata.name": of}
    there = (
        matches(peer["namespaceSelector"], names)
        if "namespaceSelector" in peer
        else (of == "medssl")
    )
    return there and matches(peer.get("podSelector", {}), pod.labels)


def matches(selector: dict, labels: dict) -> bool:
    """Whether a selector of labels takes these; {} takes all."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for one in selector.get("matchExpressions", ()):
        has = labels.get(one["key"])
        right = {
            "In": has in one.get("values", ()),
            "NotIn": has not in one.get("values", ()),
            "Exists": one["key"] in labels,
            "DoesNotExist": one["key"] not in labels,
        }
        if not right[one["operator"]]:
            return False
    return True


def _ports(container: dict) -> list[dict]:
    return container.get("ports", [])


def _name(each: dict) -> str:
    return f"{each['kind']}/{each['metadata']['name']}"


def _leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value
