"""A sweep as Kubernetes is asked to run it."""

import copy
import json
from pathlib import Path

import pytest

from medssl import Resources, Sweep, rayjob

HAS = {"cpu": "3500m", "memory": "16Gi", "nvidia.com/gpu": "1"}


def group(name: str = "gpu-spot", most: int = 4, told: dict | None = None, **resources) -> dict:
    container = {"name": "ray-worker", "image": "medssl:1", "resources": resources}
    template = {"spec": {"containers": [container]}}
    return {
        "groupName": name,
        "maxReplicas": most,
        "rayStartParams": told,
        "template": template,
    }


SHAPE = {
    "suspend": True,
    "rayVersion": "2.60.0",
    "headGroupSpec": {
        "template": {
            "metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true", "fuse": "true"}},
            "spec": {
                "nodeSelector": {"pool": "on-demand"},
                "affinity": {"nodeAffinity": {}},
                "containers": [
                    {
                        "name": "ray-head",
                        "image": "medssl:1",
                        "env": [{"name": "A", "value": "1"}, {"name": "MEDSSL_NODES", "value": ""}],
                        "securityContext": {"readOnlyRootFilesystem": True},
                        "volumeMounts": [{"name": "store", "mountPath": "/store"}],
                    }
                ],
                "volumes": [{"name": "store", "emptyDir": {}}],
            },
        }
    },
    "workerGroupSpecs": [group(limits=HAS, requests=HAS)],
}


def sweep(**asked) -> Sweep:
    axes = {"method": "none", "dataset": "phantom/cells", "backbone": "resnet/18-3x3"}
    return Sweep(name="My sweep, of 2026", **(axes | asked))


def job(**asked) -> dict:
    of = rayjob.labels("My sweep", "0.1.0+abc.dirty")
    told = {"shape": SHAPE, "deadline_s": 60, **asked}
    return rayjob.ray_job("my-sweep-1", "ns", of, "mine.py", **told)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (group(limits=HAS), ("gpu-spot", 4, 1, 4)),
        (group(requests={"cpu": "2"}, limits={"cpu": "6"}), ("gpu-spot", 6, 0, 4)),
        (group(requests={"cpu": "2"}), ("gpu-spot", 2, 0, 4)),
        (group(told={"num-cpus": "1", "num-gpus": "0"}, limits=HAS), ("gpu-spot", 1, 0, 4)),
        (group("cpu", 0), ("cpu", 0, 0, 0)),
    ],
)
def test_groups_are_what_ray_will_count(made, found):
    assert rayjob.groups({"workerGroupSpecs": [made]}) == [rayjob.Group(*found)]
    assert rayjob.groups({}) == []


@pytest.mark.parametrize(
    ("resources", "wrong"),
    [
        (Resources(cpu=4), ""),
        (Resources(cpu=4, gpu=0.25), ""),
        (Resources(cpu=5), "takes 5 cores and 1 GPUs"),
        (Resources(gpu=2), "takes 1 cores and 2 GPUs"),
        (Resources(gpu=lambda encoder: 4 if encoder.image_size > 64 else 1), "4 GPUs"),
    ],
)
def test_a_trial_that_fits_no_node_is_refused_before_any_starts(resources, wrong):
    asked = sweep(image_size=[64, 224], resources=resources)
    nodes = rayjob.groups(SHAPE)
    if not wrong:
        rayjob.fit(asked, nodes)
        return
    with pytest.raises(ValueError, match=wrong) as told:
        rayjob.fit(asked, nodes)
    assert "gpu-spot: 4 and 1, up to 4" in str(told.value)


def test_a_group_that_may_have_no_nodes_is_none():
    with pytest.raises(ValueError, match="no node"):
        rayjob.fit(sweep(), rayjob.groups({"workerGroupSpecs": [group(most=0, limits=HAS)]}))
    with pytest.raises(ValueError, match="no groups"):
        rayjob.fit(sweep(), [])


def test_a_group_without_a_maximum_is_not_taken_at_its_word():
    (found,) = rayjob.groups({"workerGroupSpecs": [group(most=2**31 - 1, limits=HAS)]})
    assert found.most == rayjob.MANY


def test_names_are_kuberays_and_follow_sweep_code_and_file():
    name = rayjob.name("My sweep, of 2026", "0.1.0+abc", "text")
    assert name == rayjob.name("My sweep, of 2026", "0.1.0+abc", "text")
    others = {
        rayjob.name("My sweep, of 2027", "0.1.0+abc", "text"),
        rayjob.name("My sweep, of 2026", "0.1.0+abd", "text"),
        rayjob.name("My sweep, of 2026", "0.1.0+abc", "texts"),
    }
    assert len(others | {name}) == 4
    assert name.startswith("my-sweep-of-2026-")
    for odd in ("7", "-", "", "Größe", "x" * 80, "a" * 37 + "-b"):
        found = rayjob.name(odd, "code", "text")
        assert len(found) <= 47
        assert rayjob.slug(found) == found
        assert "--" not in found


def test_a_code_version_is_a_label():
    of = rayjob.labels("My sweep", "0.1.0+files.abc def" + "x" * 80)
    assert of[rayjob.SWEEP] == "my-sweep"
    assert of[rayjob.CODE].startswith("0.1.0-files.abc-def")
    assert len(of[rayjob.CODE]) == 63
    assert rayjob.labels("s", "a" * 62 + "-b")[rayjob.CODE] == "a" * 62  # ends as a label may


def test_the_cluster_is_the_shape_and_the_head_gets_the_sweep():
    before = copy.deepcopy(SHAPE)
    spec = job()["spec"]
    assert before == SHAPE
    cluster = spec["rayClusterSpec"]
    assert "suspend" not in cluster
    assert cluster["workerGroupSpecs"] == SHAPE["workerGroupSpecs"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    head = pod["containers"][0]
    env = {each["name"]: each["value"] for each in head["env"]}
    assert len(head["env"]) == 2
    assert env["A"] == "1"
    assert json.loads(env["MEDSSL_NODES"]) == [{"CPU": 4, "GPU": 1.0, "most": 4}]
    mounts = {each["mountPath"]: each["name"] for each in head["volumeMounts"]}
    assert mounts == {"/store": "store", "/sweep": "sweep"}
    assert head["volumeMounts"][-1]["readOnly"] is True
    assert {"name": "sweep", "configMap": {"name": "my-sweep-1"}} in pod["volumes"]
    assert spec["entrypoint"] == "medssl run /sweep/mine.py --failed-is-done"
    assert job(asked=("--budget-hours", "3"))["spec"]["entrypoint"].endswith(" --budget-hours 3")


def test_a_job_is_tried_again_and_leaves_no_cluster():
    spec = job(deadline_s=99)["spec"]
    assert spec["backoffLimit"] == 3
    assert spec["submitterConfig"] == {"backoffLimit": 10}
    assert spec["activeDeadlineSeconds"] == 99
    assert spec["submissionMode"] == "K8sJobMode"
    assert 600 < spec["preRunningDeadlineSeconds"] <= 3600  # a node must come, and pull 7 GB
    assert "shutdownAfterJobFinishes" not in spec  # KubeRay takes that or rules, not both
    ended = [
        (rule["condition"].get("jobStatus"), rule["condition"].get("jobDeploymentStatus"))
        for rule in spec["deletionStrategy"]["deletionRules"]
        if rule["policy"] == "DeleteCluster"
    ]
    assert ended == [("SUCCEEDED", None), ("FAILED", None), (None, "Failed")]
    kept = [rule["condition"]["ttlSeconds"] for rule in spec["deletionStrategy"]["deletionRules"]]
    assert max(kept) <= 600  # "none ten minutes after the sweep", say the targets


def test_the_submitter_is_as_restricted_as_the_head():
    template = job()["spec"]["submitterPodTemplate"]
    pod, container = template["spec"], template["spec"]["containers"][0]
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "submitter"
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "medssl-submitter"
    assert pod["nodeSelector"] == {"pool": "on-demand"}
    assert pod["affinity"] == {"nodeAffinity": {}}
    assert template["metadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}
    assert container["image"] == "medssl:1"
    assert container["securityContext"] == {"readOnlyRootFilesystem": True}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert "command" not in container  # KubeRay's
    assert pod["restartPolicy"] == "Never"  # a Job takes no Always
    assert pod["enableServiceLinks"] is False
    env = {each["name"]: each for each in container["env"]}
    assert (
        env["HOME"]["value"] == container["volumeMounts"][0]["mountPath"]
    )  # all that it may write
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    asked = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert asked == {"name": "medssl-ray", "key": "auth_token"}


def test_a_queue_of_kueues_gets_the_job_and_no_rules():
    made = job(queue="team-a")
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert "deletionStrategy" not in made["spec"]
    assert made["spec"]["shutdownAfterJobFinishes"] is True
    assert made["spec"]["ttlSecondsAfterFinished"] <= 600
    assert "kueue.x-k8s.io/queue-name" not in job()["metadata"]["labels"]


@pytest.mark.parametrize("name", ["my sweep.py", "a;b.py", "$(x).py", "ä.py", "-.sh", "a.txt"])
def test_a_file_whose_name_a_shell_would_read_is_refused(name):
    with pytest.raises(ValueError, match="name the sweep's file in letters"):
        rayjob.config_map("j", "ns", {}, Path(name), "x = 1\n")


def test_a_file_that_is_too_large_to_travel_is_refused():
    of = rayjob.labels("s", "c")
    made = rayjob.config_map("j", "ns", of, Path("sweeps/mine.py"), "x = 1\n")
    assert made["data"] == {"mine.py": "x = 1\n"}
    with pytest.raises(ValueError, match="a sweep is a short file"):
        rayjob.config_map("j", "ns", of, Path("mine.py"), "ä" * 500_000)
