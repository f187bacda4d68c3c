"""Kubernetes' door: what a cluster lacks, a sweep submitted to it, and what became of it.

    deploy/targets/NAME -> up: missing secrets, then everything by server-side apply
    sweep file -> submit: rayjob.py's objects, applied; the same again changes nothing
    RayJob, its pods and events -> jobs: what runs, what waits and why

What the API server refuses comes back as a ValueError: a sentence and its remedy. A server that is
away for a moment is asked again.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medssl import rayjob
from medssl.doctor import Finding

NAMESPACE, SHAPE, MANAGER = "medssl", "medssl", "medssl"
RAY = "ray.io/v1"
OLDEST = "1.25"  # Kubernetes that enforces Pod Security and has policy/v1
TESTED = "1.7.0"  # KubeRay's version by whose rules the manifests were checked
HELM = f"helm install kuberay-operator kuberay/kuberay-operator --version {TESTED}"
AWAY_S = 60  # for which a server that was there is awaited
GONE_S = 15  # and what it says it does not have
LOOK_S, REQUEST_S = 2, 20
SECRETS = {  # made where they are absent, and never shown
    "medssl-ray": ["auth_token"],
    "medssl-postgres": ["password"],
    "medssl-mlflow": ["admin-password", "flask-secret", "sweep-password"],
}
RIGHTS = [  # (verb, group, resource) that the verbs of `medssl cluster` need
    *((verb, "ray.io", "rayjobs") for verb in ("get", "list", "create", "patch", "delete")),
    ("get", "ray.io", "rayclusters"),
    *((verb, "", "configmaps") for verb in ("get", "create", "patch")),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "", "events"),
    *((verb, "", "pods/portforward") for verb in ("get", "create")),  # as old and new servers ask
]
STOPPED = [  # kinds that run or cost something by themselves
    (RAY, "RayJob"),
    (RAY, "RayCluster"),
    ("batch/v1", "Job"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
]
PULL = (
    "the image cannot be pulled: push it, name it in the target's images:, and give the namespace "
    "a pull secret if its registry asks for one"
)
FULL = (
    "end what uses it (`medssl cluster status` lists jobs, `stop` ends one), or have the quota "
    "raised"
)
REMEDIES = {  # of why a container waits
    "ErrImagePull": PULL,
    "ImagePullBackOff": PULL,
    "InvalidImageName": PULL,
    "CreateContainerConfigError": "a Secret or ConfigMap is missing: `medssl cluster up` makes it",
    "CrashLoopBackOff": "it ends again and again: `medssl cluster logs` says why",
}
GPU = "nvidia.com/gpu"
UNSAID = {"resourceVersion", "managedFields"}  # of an object, that are no content of it


@dataclass
class Job:
    """A sweep on the cluster, as far as the cluster knows."""

    name: str
    sweep: str
    phase: str  # KubeRay's jobDeploymentStatus; "" before the operator has seen it
    status: str  # of Ray's job: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    message: str = ""
    failed: int = 0  # clusters that were tried before
    pods: list[str] = field(default_factory=list)  # where each is, or why it waits
    remedies: list[str] = field(default_factory=list)
    last: str = ""  # line of its driver

    @property
    def ended(self) -> bool:
        return self.phase in ("Complete", "Failed", "ValidationFailed")

    @property
    def ok(self) -> bool:
        return self.phase == "Complete" and self.status == "SUCCEEDED"


class Cluster:
    """One namespace of the cluster that a kubeconfig names."""

    def __init__(self, context: str | None = None, namespace: str = NAMESPACE):
        from kubernetes import client, config, dynamic

        self.namespace = namespace
        try:
            known = os.environ.get("KUBECONFIG")
            if not (context or known) and "KUBERNETES_SERVICE_HOST" in os.environ:  # we are a pod
                config.load_incluster_config()
            else:
                config.load_kube_config(config_file=known or "~/.kube/config", context=context)
        except (config.ConfigException, OSError) as no:
            raise ValueError(
                f"no cluster ({str(no).rstrip('.')}): name a kubeconfig in KUBECONFIG (your "
                f"provider's tool writes one, and `kind create cluster`), or another --context"
            ) from None
        settings = client.Configuration.get_default_copy()
        settings.retries = False  # what is away is awaited here
        if not settings.verify_ssl:  # as the kubeconfig says: once is enough
            warnings.filterwarnings("ignore", "Unverified HTTPS request")
        self.server, self._api = settings.host, client.ApiClient(settings)
        with _sentences(self.server, "be asked"):
            nowhere = "/dev/null/kinds"  # else a file of everybody's in /tmp is trusted
            self._kinds = dynamic.DynamicClient(self._api, cache_file=nowhere)

    # one object

    def get(self, api: str, kind: str, name: str) -> dict | None:
        return self._ask(api, kind, "get", "see", name=name)

    def find(self, api: str, kind: str, select: str = "") -> list[dict]:
        found = self._ask(api, kind, "get", "list", label_selector=select)
        return (found or {}).get("items", [])

    def apply(self, body: dict) -> dict:
        """Ours of its fields; ValueError where somebody else has set one, or it is not valid."""
        api, kind, name = body["apiVersion"], body["kind"], body["metadata"]["name"]
        strict = [("fieldValidation", "Strict")]
        how = {"name": name, "body": body, "field_manager": MANAGER, "query_params": strict}
        return self._ask(api, kind, "server_side_apply", "apply", **how)

    def delete(self, api: str, kind: str, name: str) -> None:
        how = {"propagationPolicy": "Background"}
        self._ask(api, kind, "delete", "delete", name=name, body=how)

    def _ask(self, api: str, kind: str, verb: str, told: str, **asked) -> dict | None:
        """None for what is not there."""
        from kubernetes.dynamic import exceptions

        asked = {"_request_timeout": REQUEST_S, **asked}
        with _sentences(self.server, f"{told} {kind} {asked.get('name', '')}".strip()):
            try:
                resource = self._kinds.resources.get(api_version=api, kind=kind)
            except exceptions.ResourceNotFoundError:
                raise _NoKind(_no_kind(api, kind)) from None
            if resource.namespaced:
                asked["namespace"] = self.namespace
            try:
                return getattr(resource, verb)(**asked).to_dict()
            except exceptions.NotFoundError:
                if verb == "server_side_apply":
                    raise
                return None

    # up and down

    def up(self, objects: Sequence[dict], say: Callable[[str], None]) -> None:
        """Applies a target; ValueError, before anything is changed, where a kind is absent.

        Policies come before what they hold, so that no pod is without.
        """
        self._all_there(objects)
        first = {"Namespace": 0, "NetworkPolicy": 1}
        same = 0
        for body in sorted(objects, key=lambda body: first.get(body["kind"], 2)):
            api, kind, name = body["apiVersion"], body["kind"], body["metadata"]["name"]
            before, after = self.get(api, kind, name), self.apply(body)
            if before and _same(before, after):
                same += 1
            else:
                say(f"{kind} {name}: {'changed' if before else 'made'}")
            if kind == "Namespace":
                for secret in self.make_secrets():
                    say(f"Secret {secret}: made, of random values")
        say(f"{len(objects)} objects, {same} as they were")

    def _all_there(self, objects: Sequence[dict]) -> None:
        from kubernetes.dynamic import exceptions

        self._kuberay()
        absent = {}
        for api, kind in {(body["apiVersion"], body["kind"]): None for body in objects}:
            try:
                with _sentences(self.server, "see which kinds there are"):
                    self._kinds.resources.get(api_version=api, kind=kind)
            except exceptions.ResourceNotFoundError:
                absent[f"{kind} of {api}"] = None
        if absent:
            raise ValueError(
                f"the cluster has no {', no '.join(absent)}, so nothing was made: Kubernetes "
                f"{OLDEST} or newer has those of its own; others come with their operators"
            )

    def make_secrets(self) -> list[str]:
        """The names of those that were absent. One that is there is left as it is."""
        made = []
        for name, keys in SECRETS.items():
            if self.get("v1", "Secret", name) is None:
                text = {
                    key: base64.b64encode(secrets.token_hex(32).encode()).decode() for key in keys
                }
                about = {"name": name, "namespace": self.namespace}
                about["labels"] = {rayjob.PART_OF: "medssl"}
                body = {"apiVersion": "v1", "kind": "Secret", "metadata": about, "data": text}
                self.apply(body | {"type": "Opaque"})
                made.append(name)
        return made

    def down(self, everything: bool, say: Callable[[str], None]) -> None:
        """Ends what runs; with `everything` volumes, secrets and the namespace too, if it is one
        that `up` has made."""
        if everything:
            found = self.get("v1", "Namespace", self.namespace) or {"metadata": {}}
            if (found["metadata"].get("labels") or {}).get(rayjob.PART_OF) != "medssl":
                raise ValueError(
                    f"namespace {self.namespace} is none that `medssl cluster up` has made: it is "
                    f"not deleted"
                )
        for api, kind in STOPPED:
            with contextlib.suppress(_NoKind):
                for body in self.find(api, kind, f"{rayjob.PART_OF}=medssl"):
                    self.delete(api, kind, body["metadata"]["name"])
                    say(f"{kind} {body['metadata']['name']}: deleted")
        if everything:
            self.delete("v1", "Namespace", self.namespace)
            say(
                f"Namespace {self.namespace}: deleted, with its claims and secrets; disks of a "
                f"class that retains them are left: see `kubectl get pv`"
            )
            return
        kept = [body["metadata"]["name"] for body in self.find("v1", "PersistentVolumeClaim")]
        say(f"kept: volumes {', '.join(kept) or 'none'}; secrets, accounts and policies")

    # a sweep

    def shape(self) -> dict:
        """The spec of the RayCluster that a target has set up."""
        return self._shape()["spec"]

    def queue(self) -> str:
        """Of Kueue's, in which jobs wait; "" for none."""
        return (self._shape()["metadata"].get("annotations") or {}).get("medssl.io/queue", "")

    def _shape(self) -> dict:
        self._kuberay()
        found = self.get(RAY, "RayCluster", SHAPE)
        if found is None:
            raise ValueError(
                f"no RayCluster {SHAPE} in namespace {self.namespace}: run `medssl cluster up "
                f"deploy/targets/NAME` first, or name another --namespace"
            )
        return found

    def settings(self) -> dict[str, str]:
        """What all pods are told: where the store is, and MLflow."""
        return (self.get("v1", "ConfigMap", "medssl-settings") or {}).get("data") or {}

    def submit(self, file: dict, job: dict, again: bool = False) -> str:
        """Applies both; "made", "changed", "as it was" or, of an ended one, "ended".

        An ended one is made anew with `again`, or where it failed: what it finished is kept.
        ValueError where another job of the sweep has not ended.
        """
        name = job["metadata"]["name"]
        before = self.get(RAY, "RayJob", name)
        if before and before["metadata"].get("deletionTimestamp"):
            self._until_gone(name)
            before = None
        if before and (told := _job(before)).ended and told.ok and not again:
            return "ended"
        self._alone(job)
        if before and told.ended:
            self.stop(name)
            before = None
        if before is None:
            self.apply(file)  # first, for the head mounts it; the job owns it once it is there
        after = self.apply(job)
        owner = {"apiVersion": RAY, "kind": "RayJob", "name": name, "uid": after["metadata"]["uid"]}
        self.apply(file | {"metadata": file["metadata"] | {"ownerReferences": [owner]}})
        if before is None:
            return "made"
        return "as it was" if _same(before, after) else "changed"

    def _alone(self, job: dict) -> None:
        """ValueError where another job is at the sweep: a second driver is refused (alone.py), and
        KubeRay would try it in one cluster after another."""
        about = job["metadata"]
        for body in self.find(RAY, "RayJob", f"{rayjob.SWEEP}={about['labels'][rayjob.SWEEP]}"):
            other, going = _job(body), body["metadata"].get("deletionTimestamp")
            if other.name != about["name"] and not other.ended and not going:
                raise ValueError(
                    f"job {other.name} is at the same sweep, with another file or code: wait until "
                    f"it has ended, or `medssl cluster stop {other.name}`; what it has finished is "
                    f"kept, and used"
                )

    def stop(self, name: str) -> None:
        """Ends a job; its driver is told to first. Trials end with it: at most `checkpoint_s` of
        what each has done is lost."""
        if self.get(RAY, "RayJob", name) is None:
            raise ValueError(f"no job {name}: `medssl cluster status` lists those there are")
        self.delete(RAY, "RayJob", name)
        self._until_gone(name)

    def _until_gone(self, name: str) -> None:
        until = time.monotonic() + AWAY_S
        while self.get(RAY, "RayJob", name) is not None:
            if time.monotonic() > until:
                raise ValueError(
                    f"job {name} is still being deleted: KubeRay's operator ends its driver first; "
                    f"if that is gone too, see `kubectl -n {self.namespace} describe rayjob {name}`"
                )
            time.sleep(LOOK_S / 4)

    def jobs(self, sweep: str = "") -> list[Job]:
        """The newest first, those of one sweep or all."""
        select = f"{rayjob.PART_OF}=medssl" + (f",{rayjob.SWEEP}={sweep}" if sweep else "")
        found = self.find(RAY, "RayJob", select)
        found.sort(key=lambda body: body["metadata"].get("creationTimestamp") or "", reverse=True)
        return [self._with_pods(_job(body), body) for body in found]

    def _with_pods(self, job: Job, body: dict) -> Job:
        if job.status == "STOPPED":  # in Ray: no rule of KubeRay's speaks of that
            job.remedies.append(f"its cluster stays until `medssl cluster stop {job.name}`")
        if job.ended:
            return job
        name = (body.get("status") or {}).get("rayClusterName")
        pods = self.find("v1", "Pod", f"ray.io/cluster={name}") if name else []
        for pod in pods + self.find("v1", "Pod", f"job-name={job.name}"):
            told, remedy = _pod(pod, self._events)
            job.pods.append(f"{pod['metadata']['name']}  {told}")
            if remedy and remedy not in job.remedies:
                job.remedies.append(remedy)
        for event in self._events(job.name, name or "", reason="FailedToCreate"):
            told = event.get("message") or ""
            job.pods.append(f"{event['reason']} at {event.get('lastTimestamp') or '?'}: {told}")
            if "exceeded quota" in told and FULL not in job.remedies:
                job.remedies.append(FULL)
        with contextlib.suppress(ValueError):
            lines = [line for line in self.log(job.name, tail=20) if line.strip()]
            job.last = lines[-1] if lines else ""
        return job

    def _events(self, *names: str, reason: str = "") -> list[dict]:
        """Of objects with those names, the last of each reason; of those that begin so."""
        last = {}
        for event in self.find("v1", "Event"):
            why, of = event.get("reason") or "", event.get("involvedObject") or {}
            at = event.get("lastTimestamp") or ""
            if of.get("name") in names and why.startswith(reason):
                last[why] = max((at, event), last.get(why, ("", {})), key=lambda pair: pair[0])
        return [event for _, event in last.values()]

    def follow(self, name: str, say: Callable[[str], None]) -> Iterator[Job]:
        """A job whenever it has changed, until it has ended; a server that is away is awaited."""
        told, since = None, None  # the latter: it is away
        while True:
            try:
                body, no = self.get(RAY, "RayJob", name), None
            except _Away as away:
                body, no = None, away
            if body is None:  # a server that has just started may not know its kinds yet
                if since is None and no:
                    say(f"{no}; waiting")
                since = since or time.monotonic()
                if time.monotonic() - since > (AWAY_S if no else GONE_S):
                    raise no or ValueError(f"no job {name}: it was deleted, or never was there")
                time.sleep(LOOK_S)
                continue
            since, job = None, _job(body)
            if (now := (job.phase, job.status, job.failed, job.message)) != told:
                told = now
                yield job
            if job.ended:
                return
            time.sleep(LOOK_S)

    def log(self, name: str, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """What a job's driver has said, as the pod that handed it over repeats it.

        ValueError where no such pod has said anything yet.
        """
        from kubernetes import client

        pods = self.find("v1", "Pod", f"job-name={name}")
        pods.sort(key=lambda pod: pod["metadata"].get("creationTimestamp") or "")
        if not pods:
            raise ValueError(f"nothing is running of {name}: `medssl cluster status` says why")
        pod = pods[-1]["metadata"]["name"]
        with _sentences(self.server, f"read the log of {pod}"):
            how = {"tail_lines": tail, "follow": follow, "_preload_content": False}
            how["_request_timeout"] = None if follow else REQUEST_S  # a node may be out of reach
            answer = client.CoreV1Api(self._api).read_namespaced_pod_log(pod, self.namespace, **how)
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")

    # what is there

    def check(self) -> Iterator[Finding]:
        """Each thing that a sweep needs; nothing is changed."""
        version = self._kinds.version["kubernetes"]["gitVersion"].lstrip("v")
        old = _numbers(version) < _numbers(OLDEST)
        upgrade = f"{OLDEST} or newer enforces Pod Security: upgrade it" if old else ""
        yield Finding(not old, f"{self.server} answers, Kubernetes {version}", upgrade)
        yield from self._check_rights()
        yield self._check_operator()
        for look in (
            self._check_target,
            self._check_nodes,
            self._check_quota,
            self._check_storage,
        ):
            try:
                yield from look()
            except _Away:
                raise
            except ValueError as no:  # what is refused hides nothing of the rest
                yield Finding(None, str(no).partition(". Ask")[0])

    def _check_rights(self) -> Iterator[Finding]:
        refused = []
        for verb, group, resource in RIGHTS:
            main, _, sub = resource.partition("/")
            asked = {"namespace": self.namespace, "verb": verb, "group": group}
            asked |= {"resource": main, "subresource": sub}
            body = {"spec": {"resourceAttributes": asked}}
            body |= {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
            found = self._ask(body["apiVersion"], body["kind"], "create", "ask for", body=body)
            if not found["status"]["allowed"]:
                refused.append(f"{verb} {resource}")
        if refused:
            yield Finding(
                False,
                f"you may not: {', '.join(refused)}",
                f"ask whoever runs the cluster for the role `edit` in namespace {self.namespace}, "
                f"and for these rights on rayjobs and rayclusters of ray.io",
            )
        else:
            yield Finding(True, f"you may run sweeps in namespace {self.namespace}")

    def _check_operator(self) -> Finding:
        try:
            self._kuberay()
        except ValueError as no:
            return Finding(False, "KubeRay is absent", str(no))
        try:
            resource = self._kinds.resources.get(api_version="apps/v1", kind="Deployment")
            select = "app.kubernetes.io/name=kuberay-operator"
            with _sentences(self.server, "list Deployment"):
                found = resource.get(label_selector=select).to_dict()["items"]
        except ValueError:
            return Finding(None, "KubeRay's kinds are there; its operator is not yours to see")
        return _operator(found)

    def _check_target(self) -> Iterator[Finding]:
        up = "run `medssl cluster up deploy/targets/NAME`"
        with contextlib.suppress(ValueError):
            if self.get("v1", "Namespace", self.namespace) is None:
                yield Finding(False, f"no namespace {self.namespace}", up)
                return
        try:
            found = rayjob.groups(self.shape())
        except ValueError as no:
            yield Finding(False, str(no).partition(":")[0], up)
            return
        told = "; ".join(f"{g.name} {g.cpu} cores, {g.gpu:g} GPUs, up to {g.most}" for g in found)
        yield Finding(True, f"RayCluster {SHAPE}: {told or 'no worker groups'}")
        absent = [name for name in SECRETS if self.get("v1", "Secret", name) is None]
        if absent:
            yield Finding(False, f"no Secret {', '.join(absent)}", up)
        for claim in self.find("v1", "PersistentVolumeClaim"):
            name, phase = claim["metadata"]["name"], (claim.get("status") or {}).get("phase")
            if phase == "Lost":
                yield Finding(False, f"volume {name} is lost", "restore it: see deploy/README.md")

    def _check_nodes(self) -> Iterator[Finding]:
        try:
            nodes = self.find("v1", "Node")
        except ValueError:
            yield Finding(None, "nodes are not yours to see, so neither are their GPUs")
            return
        gpus = sum(
            int((node.get("status") or {}).get("allocatable", {}).get(GPU, 0)) for node in nodes
        )
        wants = False
        with contextlib.suppress(ValueError):
            wants = any(group.gpu for group in rayjob.groups(self.shape()))
        if wants and not gpus:
            yield Finding(
                None,
                f"{len(nodes)} nodes, none with a GPU now",
                "well, if a node pool adds them when pods wait for them; else install the GPU "
                "operator, and see that `kubectl describe node` lists nvidia.com/gpu",
            )
        else:
            yield Finding(True, f"{len(nodes)} nodes with {gpus} GPUs that pods may ask for")

    def _check_quota(self) -> Iterator[Finding]:
        for quota in self.find("v1", "ResourceQuota"):
            status = quota.get("status") or {}
            used, name = status.get("used") or {}, quota["metadata"]["name"]
            for what, hard in (status.get("hard") or {}).items():
                if what in used and used[what] == hard != "0":
                    yield Finding(
                        False,
                        f"quota {name}: all of {what} is used ({hard})",
                        FULL,
                    )

    def _check_storage(self) -> Iterator[Finding]:
        try:
            found = self.find("storage.k8s.io/v1", "StorageClass")
        except ValueError:
            yield Finding(None, "storage classes are not yours to see")
            return
        known = {body["metadata"]["name"] for body in found}
        claims = self.find("v1", "PersistentVolumeClaim")
        waiting = [c for c in claims if (c.get("status") or {}).get("phase") != "Bound"]
        asked = {c["spec"].get("storageClassName") for c in waiting} - {None, ""}
        mark = "storageclass.kubernetes.io/is-default-class"
        default = [
            body["metadata"]["name"]
            for body in found
            if (body["metadata"].get("annotations") or {}).get(mark) == "true"
        ]
        if asked - known:
            yield Finding(
                False,
                f"no storage class {', '.join(sorted(asked - known))}",
                f"name one of {', '.join(sorted(known)) or 'none there are'} in the target",
            )
        elif not default and any(c["spec"].get("storageClassName") is None for c in waiting):
            yield Finding(False, "no default storage class", "name one in the target's volumes")
        else:
            yield Finding(True, f"storage classes: {', '.join(sorted(known)) or 'none needed'}")

    def _kuberay(self) -> None:
        from kubernetes.dynamic import exceptions

        with _sentences(self.server, "see which kinds there are"):
            try:
                self._kinds.resources.get(api_version=RAY, kind="RayJob")
            except exceptions.ResourceNotFoundError:
                raise _NoKind(_no_kind(RAY, "RayJob")) from None

    # its pages

    def forward(self, pod: str, remote: int, local: int) -> socketserver.BaseServer:
        """A server on this machine's loopback whose connections end at a pod's port."""
        from kubernetes import client
        from kubernetes.stream import portforward

        settings, namespace = self._api.configuration, self.namespace

        class Pipe(socketserver.BaseRequestHandler):
            def handle(self):
                mine = client.CoreV1Api(client.ApiClient(settings))  # portforward changes it
                ask = mine.connect_get_namespaced_pod_portforward
                try:
                    there = portforward(ask, pod, namespace, ports=str(remote)).socket(remote)
                except Exception:  # the pod is gone: the browser sees a closed connection
                    return
                back = threading.Thread(target=_pour, args=(there, self.request), daemon=True)
                back.start()
                _pour(self.request, there)
                back.join()
                there.close()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        try:
            server = Server(("127.0.0.1", local), Pipe)
        except OSError as no:
            raise ValueError(f"port {local} is taken ({no.strerror}): name another") from None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def running(self, select: str) -> str | None:
        """The name of a pod that runs, by its labels."""
        for pod in self.find("v1", "Pod", select):
            if (pod.get("status") or {}).get("phase") == "Running":
                return pod["metadata"]["name"]
        return None


def render(target: Path, image: str | None = None) -> list[dict]:
    """A target's objects, by `kubectl kustomize`; ValueError where it cannot be built.

    `image` takes the place of the one named medssl, whatever its registry and tag.
    """
    import yaml

    if not (target / "kustomization.yaml").is_file():
        near = sorted(str(file.parent) for file in target.parent.glob("*/kustomization.yaml"))
        raise ValueError(
            f"no target at {target}: name a folder with a kustomization.yaml, as "
            f"{', '.join(near) or 'deploy/targets/kind'}"
        )
    if (kubectl := shutil.which("kubectl")) is None:
        raise ValueError(
            "kubectl is missing, which builds targets: see kubernetes.io/docs/tasks/tools"
        )
    built = subprocess.run([kubectl, "kustomize", target], capture_output=True, text=True)
    if built.returncode:
        raise ValueError(f"{target} cannot be built: {built.stderr.strip()}")
    if left := sorted(set(re.findall(r"EDIT[A-Z-]*", built.stdout))):
        raise ValueError(
            f"{target} still says {', '.join(left)}: fill in your own values, as its "
            f"kustomization.yaml tells"
        )
    objects = [body for body in yaml.safe_load_all(built.stdout) if body]
    if image:
        for container in _containers(objects):
            if re.fullmatch(r"(.*/)?medssl([:@].*)?", container["image"]):
                container["image"] = image
    return objects


def _containers(of) -> Iterator[dict]:
    """All that have an image, at any depth."""
    if isinstance(of, dict):
        if isinstance(of.get("image"), str):
            yield of
        of = list(of.values())
    if isinstance(of, list):
        for one in of:
            yield from _containers(one)


class _Away(ValueError):
    """The server gives no answer."""


class _NoKind(ValueError):
    """The server has no such kind."""


def _no_kind(api: str, kind: str) -> str:
    absent = f"the cluster has no {kind} of {api}"
    return f"{absent}: KubeRay's operator is absent, install it: {HELM}" if api == RAY else absent


@contextlib.contextmanager
def _sentences(server: str, doing: str) -> Iterator[None]:
    """What a server refuses, or that there is none, as a ValueError."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as no:
        told = _told(no)
        if no.status == 401:
            raise ValueError(f"{server} does not know you: log in again ({told})") from None
        if no.status == 403 and "exceeded quota" in told:
            raise ValueError(f"{told}: {FULL}") from None
        if no.status == 403 and "being terminated" in told:
            raise ValueError(
                f"cannot {doing}: its namespace is being deleted; wait until `kubectl get "
                f"namespace` has it no more"
            ) from None
        if no.status == 403:
            raise ValueError(
                f"you may not {doing}: {told}. Ask whoever runs the cluster; `medssl cluster "
                f"check` lists the rights that are needed"
            ) from None
        if no.status == 409:
            raise ValueError(
                f"cannot {doing}: {told}. Whoever set it should let go of it, or delete the object"
            ) from None
        if no.status in (429, 500, 502, 503, 504):
            raise _Away(f"{server} is away ({no.status} {told})") from None
        if "immutable" in told or "Forbidden: spec is" in told:
            raise ValueError(
                f"cannot {doing}: {told}. Such a thing is made, not changed: delete it first, if "
                f"nothing in it is needed (a Job's pods, not a volume's claim)"
            ) from None
        raise ValueError(f"cannot {doing}: {told}") from None
    except (HTTPError, ConnectionError) as no:
        why = str(getattr(no, "reason", None) or no).rpartition(": ")[2]
        raise _Away(f"no answer from {server} ({why}): is it there, and the way to it?") from None


def _told(no) -> str:
    """What a server says of itself."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return json.loads(no.body)["message"]
    return no.reason or str(no.status)


def _same(before: dict, after: dict) -> bool:
    """Whether nothing was changed; some servers count a write that wrote nothing."""
    kept = [
        body | {"metadata": {k: v for k, v in body["metadata"].items() if k not in UNSAID}}
        for body in (before, after)
    ]
    return kept[0] == kept[1]


def _numbers(version: str) -> list[int]:
    """1.34.1-gke.7 as [1, 34]: what is compared."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def _job(body: dict) -> Job:
    about, status = body["metadata"], body.get("status") or {}
    return Job(
        about["name"],
        (about.get("labels") or {}).get(rayjob.SWEEP, ""),
        status.get("jobDeploymentStatus") or "",
        status.get("jobStatus") or "",
        ": ".join(filter(None, (status.get("reason"), status.get("message")))),
        status.get("failed") or 0,
    )


def _operator(found: Sequence[dict]) -> Finding:
    """What there is of KubeRay's operator, of its Deployments."""
    if not found:
        return Finding(False, "KubeRay's kinds are there, but no operator", f"install it: {HELM}")
    image = found[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    version = re.search(r":v?(\d+(?:\.\d+)*)", image.partition("@")[0].rpartition("/")[2])
    running = (found[0].get("status") or {}).get("readyReplicas", 0)
    what = f"KubeRay's operator {version[1] if version else image}"
    if not running:
        where = found[0]["metadata"]["namespace"]
        return Finding(False, f"{what} is not ready", f"kubectl -n {where} get pods, and its logs")
    if version and _numbers(version[1]) < _numbers(TESTED):
        return Finding(
            False,
            f"{what} is older than {TESTED}",
            f"upgrade it: {HELM.replace('install', 'upgrade', 1)}",
        )
    return Finding(True, what)


def _pod(pod: dict, events: Callable[[str], list[dict]]) -> tuple[str, str]:
    """Where a pod is, or why it waits; and what to do about that."""
    status = pod.get("status") or {}
    for container in (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    ):
        waits = (container.get("state") or {}).get("waiting") or {}
        if waits.get("reason") in REMEDIES:
            return f"waits: {waits['reason']} {container.get('image', '')}", REMEDIES[
                waits["reason"]
            ]
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            why = condition.get("message") or condition.get("reason") or ""
            return f"waits for a node: {why}", _for_a_node(pod, why, events)
    where = (pod.get("spec") or {}).get("nodeName")
    return f"{status.get('phase', 'Pending')}{f' on {where}' if where else ''}", ""


def _for_a_node(pod: dict, why: str, events: Callable[[str], list[dict]]) -> str:
    told = {event.get("reason") for event in events(pod["metadata"]["name"])}
    if {"TriggeredScaleUp", "Nominated"} & told:  # the cluster autoscaler's word, and Karpenter's
        return "a node is being added: minutes, or longer where the provider has none to give"
    if f"Insufficient {GPU}" in why or "NotTriggerScaleUp" in told:
        return (
            "no node has the GPUs, and none is being added: raise the node pool's maximum, ask "
            "your provider for quota, or let the target use another kind of GPU"
        )
    if "taint" in why or "affinity" in why or "selector" in why:
        return (
            "no node is of the kind that the target asks for: compare its nodeSelector with "
            "`kubectl get nodes --show-labels`"
        )
    return ""


def _pour(source, sink) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
