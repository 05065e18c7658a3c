"""Parts of the files of cluster/deploy, for their tests."""

import re
import tomllib

from tests.cluster.deploy_schema import DEPLOY, documents

ROOT = DEPLOY.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLUSTER = documents(DEPLOY / "kuberay-cluster.yaml")[-1]["spec"]
JOB = documents(DEPLOY / "kuberay-job.yaml")[-1]["spec"]
NAMESPACE = {d["kind"]: d for d in documents(DEPLOY / "kuberay-namespace.yaml")}
SPECS = {"cluster": CLUSTER, "job": JOB["rayClusterSpec"]}
METRICS_PORTS = {8080, 44217, 44227, 9464}
BOOT_SECONDS = 300  # boot of a node, pull of an image, or installation of streamssl


def pods():
    """Yield every pod of our files as (name, pod specification)."""
    for name, spec in SPECS.items():
        yield f"{name} head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]
    yield "job submitter", JOB["submitterPodTemplate"]["spec"]


def containers():
    """Yield every container of those pods, sidecars and the injected autoscaler included."""
    for which, pod in pods():
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{which}: {container['name']}", container
    for name, spec in SPECS.items():
        yield f"{name} head: autoscaler", spec["autoscalerOptions"]


def groups(spec):
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def ray_container(group):
    return group["template"]["spec"]["containers"][0]


def size(quantity):
    """Return the bytes of a Kubernetes quantity."""
    number, unit = re.fullmatch(r"(\d+)(|Mi|Gi)", quantity).groups()
    return int(number) << {"": 0, "Mi": 20, "Gi": 30}[unit]
