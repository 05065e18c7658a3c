"""Kubernetes files: security, pools, memory and network. Each rule prevents an outage or a leak."""

import copy
import re
import shlex
import subprocess

import click
import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as autoscaler_config,
)
from ray.scripts.scripts import drain_node
from ray.scripts.scripts import start as ray_start

from cluster.control.sequencer import SequencerConfig
from cluster.membership.world_sizes import check_trainers
from cluster.protocol.node_pools import parse_pools
from streamssl.commands.pretrain import parse_pretrain, placement_of
from tests.cluster.deploy_schema import DEPLOY, errors
from tests.cluster.deployed import (
    BOOT_SECONDS,
    CLUSTER,
    JOB,
    METRICS_PORTS,
    NAMESPACE,
    PROJECT,
    ROOT,
    SPECS,
    containers,
    groups,
    pods,
    ray_container,
    size,
)

SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
READER_BYTES = 1 << 30  # a reader without crops: torch, and the chunks that it processes
PODS = list(pods())
CONTAINERS = list(containers())


def pre_stop(group):
    """Return the script that runs before a pod ends, and its seconds."""
    *shell, script = ray_container(group)["lifecycle"]["preStop"]["exec"]["command"]
    assert shell == ["/bin/sh", "-c"]
    assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0
    return script, group["template"]["spec"]["terminationGracePeriodSeconds"]


def entrypoint():
    """Return the parsed command line of the job."""
    words = shlex.split(JOB["entrypoint"])
    assert words[:3] == ["exec", "streamssl", "pretrain"]
    return parse_pretrain(words[3:])


def test_pods_run_as_a_plain_user_without_access_to_the_host():
    """An image that exploits a decoder would control the node."""
    for which, container in CONTAINERS:
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True, which
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]} and "privileged" not in context
    for which, pod in PODS:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] >= 1000, which
        assert context["fsGroup"] == context["runAsGroup"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        kinds = {kind for volume in pod["volumes"] for kind in set(volume) - {"name"}}
        assert kinds <= {"emptyDir", "persistentVolumeClaim"}


def test_secrets_are_in_no_command():
    """`ps` and `kubectl describe` show all arguments."""
    for which, container in CONTAINERS:
        entries = {entry["name"]: entry for entry in container.get("env", ())}
        secret = {name for name in entries if re.search("TOKEN|SECRET|PASSWORD|KEY", name)}
        assert all("secretKeyRef" in entries[name].get("valueFrom", {}) for name in secret), which
        assert not any("value" in entries[name] for name in secret)
        words = " ".join([*container.get("command", ()), *container.get("args", ())])
        assert not re.search("token|secret|password|AKIA", words, re.IGNORECASE)


def test_every_ray_process_requires_the_token():
    """One node without it would let every client in."""
    for spec in SPECS.values():
        assert spec["authOptions"] == {"mode": "token", "secretName": "streamssl-ray-token"}
    for _, pod in PODS:
        env = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        ref = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert ref == {"name": "streamssl-ray-token", "key": "auth_token"}


def test_only_readers_and_the_head_have_the_credentials_of_the_bucket():
    """An attacker on a trainer or a submitter could read the data."""
    holders = {
        which.partition(" ")[2]
        for which, pod in PODS
        if "AWS_SECRET_ACCESS_KEY" in {e["name"] for e in pod["containers"][0]["env"]}
    }
    assert holders == {"head", "readers"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_head_does_no_work_and_is_evicted_last(spec):
    """A busy or moved head node stops all actors."""
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    resources = ray_container(head)["resources"]
    assert resources["requests"] == resources["limits"]
    notes = head["template"]["metadata"]["annotations"]
    assert notes["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert spec["autoscalerOptions"]["version"] == "v2" and spec["enableInTreeAutoscaling"]
    assert spec["gcsFaultToleranceOptions"]["backend"] == "rocksdb"


def test_the_alpha_gate_is_documented():
    """An operator without the gate refuses the cluster, and users would not know why."""
    for name in ("cluster", "job"):
        text = (DEPLOY / f"kuberay-{name}.yaml").read_text()
        before = text.partition("gcsFaultToleranceOptions:")[0].rsplit("\n\n", 1)[-1]
        assert "ALPHA" in before and "GCSFaultToleranceEmbeddedStorage" in before


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_only_readers_are_on_spot_nodes_in_the_zone_of_the_trainers(spec):
    """A trainer on a spot node loses steps; readers on demand cost three times as much."""
    pools = {name: group["template"]["spec"] for name, group in groups(spec).items()}
    selectors = {name: pool["nodeSelector"] for name, pool in pools.items()}
    assert [name for name in selectors if SPOT.items() & selectors[name].items()] == ["readers"]
    assert len({one["topology.kubernetes.io/zone"] for one in selectors.values()}) == 1


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pools_have_bounds_and_ray_reads_them_as_intended(spec):
    """Nodes would start and stop forever, or readers would run beside the trainer."""
    for name, group in groups(spec).items():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] < 100
        assert group["idleTimeoutSeconds"] >= 2 * BOOT_SECONDS
        assert group["labels"] == {"pool": name}
        resources = ray_container(group)["resources"]
        assert resources["requests"] == resources["limits"]
    found = autoscaler_config({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    kinds = found["available_node_types"]
    cores = {name: kind["resources"]["CPU"] for name, kind in kinds.items()}
    assert cores == {"headgroup": 0, "readers": 14, "trainers": 0}
    gpus = {name: kind["resources"].get("GPU", 0) for name, kind in kinds.items()}
    assert gpus == {"headgroup": 0, "readers": 0, "trainers": 1}
    assert kinds["readers"]["idle_timeout_s"] == 600


@pytest.mark.parametrize(("which", "pod"), PODS, ids=[w for w, _ in PODS])
def test_ray_can_write_its_files_and_its_object_store_fits(which, pod):
    """With a read-only root, Ray does not start; with a small /dev/shm, it is slow forever."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {m["mountPath"]: volumes[m["name"]] for m in pod["containers"][0]["volumeMounts"]}
    assert {"/tmp", "/home/streamssl"} <= {
        p for p, volume in mounts.items() if "emptyDir" in volume
    }
    if which == "job submitter":
        return
    assert "emptyDir" in mounts["/tmp/ray"]
    shm = mounts["/dev/shm"]["emptyDir"]
    kind, group = which.split()
    owner = {"head": SPECS[kind]["headGroupSpec"], **groups(SPECS[kind])}[group]
    assert shm["medium"] == "Memory"
    assert size(owner["rayStartParams"]["object-store-memory"]) < size(shm["sizeLimit"])
    assert size(shm["sizeLimit"]) < size(pod["containers"][0]["resources"]["limits"]["memory"]) // 2


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_ports_to_scrape_are_named(spec):
    """An undeclared port is no target: its panels say "No data"."""
    head = {port["containerPort"] for port in ray_container(spec["headGroupSpec"])["ports"]}
    assert {8080, 44217, 44227} <= head
    for group in groups(spec).values():
        assert 8080 in {port["containerPort"] for port in ray_container(group)["ports"]}
    [sidecar] = spec["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"  # what makes it a sidecar
    assert [port["containerPort"] for port in sidecar["ports"]] == [9464]
    # Pages with names and images answer the user of the run only.
    user = spec["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert sidecar["securityContext"]["runAsUser"] != user


def test_the_command_line_of_the_job_is_valid():
    """The job would start a cluster and then fail."""
    parsed = entrypoint()
    place = placement_of(parsed)
    assert (place.cluster, place.metrics_port) == ("auto", 9464)
    head = ray_container(JOB["rayClusterSpec"]["headGroupSpec"])
    mounts = {m["mountPath"] for m in head["volumeMounts"]}
    assert str(parsed.out.parent) in mounts  # else the run folder is lost with the pod
    # A job without requests runs on the head node, where run folder and Control are.
    assert not {"entrypointNumGpus", "entrypointNumCpus", "entrypointResources"} & set(JOB)


def test_the_job_fits_its_cluster():
    """Actors without room would wait forever."""
    place, pools = placement_of(entrypoint()), groups(JOB["rayClusterSpec"])
    readers, trainers = pools["readers"], pools["trainers"]
    for given, group in ((place.reader_pools, readers), (place.trainer_pools, trainers)):
        [pool] = parse_pools(given)
        assert pool.holds(group["labels"])
    cores = int(ray_container(readers)["resources"]["limits"]["cpu"])
    assert place.max_readers <= cores * readers["maxReplicas"]
    gpus = int(ray_container(trainers)["resources"]["limits"]["nvidia.com/gpu"])
    assert place.trainers * place.trainer_gpus <= gpus * trainers["maxReplicas"]
    check_trainers(entrypoint().run.stream.batch_size, place.trainers)
    # Memory of a node of readers: their processes and their shares of the held crops.
    share = SequencerConfig(num_readers=place.max_readers).max_bytes(entrypoint().run.stream)
    share //= place.max_readers
    needed = cores * (share + READER_BYTES) + int(readers["rayStartParams"]["object-store-memory"])
    assert needed < size(ray_container(readers)["resources"]["limits"]["memory"])


def test_both_files_describe_the_same_cluster():
    """A fault fixed in one file would stay in the other."""
    job, cluster = copy.deepcopy(JOB["rayClusterSpec"]), copy.deepcopy(CLUSTER)
    for group in (*job["workerGroupSpecs"], *cluster["workerGroupSpecs"]):
        del group["maxReplicas"]
    assert job == cluster


def test_an_ending_head_lets_its_commands_save():
    """Ray would only kill them; pkill must not find the shell of the hook first."""
    for spec in SPECS.values():
        script, grace = pre_stop(spec["headGroupSpec"])
        [pattern] = set(re.findall(r"-f '([^']+)'", script))
        assert re.search(pattern, "/opt/venv/bin/python /opt/venv/bin/streamssl pretrain swav")
        assert not re.search(pattern, script)
        assert grace >= 300


@pytest.mark.parametrize("name", ["readers", "trainers"])
def test_an_ending_pod_drains_its_node_in_time(name):
    """The run would lose its data without a notice."""
    for spec in SPECS.values():
        script, grace = pre_stop(groups(spec)[name])
        words = shlex.split(script.partition("ray drain-node")[2].partition(";")[0])
        options = drain_node.make_parser(click.Context(drain_node)).parse_args(words)[0]
        assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
        assert 10 <= int(options["deadline_remaining_seconds"]) <= grace - 5
        assert f"sleep {options['deadline_remaining_seconds']}" in script


def test_images_have_one_version_and_the_locked_ray():
    """Two versions of Ray cannot communicate."""
    images = {which: container["image"] for which, container in CONTAINERS if "image" in container}
    wanted = {
        which: f"registry.example.com/streamssl:{PROJECT['version']}-"
        + ("trainer" if "trainers" in which else "reader")
        for which in images
    }
    assert images == wanted
    for lock in (ROOT / "requirements.txt", DEPLOY / "requirements.txt"):
        for spec in SPECS.values():
            assert f"ray=={spec['rayVersion']}" in lock.read_text().splitlines()


def test_the_network_is_open_inside_the_namespace_and_to_scrapers():
    """Every client of Ray's ports can run code."""
    policy = NAMESPACE["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {} and policy["policyTypes"] == ["Ingress"]
    inside, *others = policy["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    ports = {}
    for rule in others:
        [peer] = rule["from"]
        [name] = peer["namespaceSelector"]["matchLabels"].values()
        ports[name] = {entry["port"] for entry in rule["ports"]}
        assert name != "monitoring" or "podSelector" in peer
    assert ports == {"monitoring": METRICS_PORTS, "kuberay-operator": {8265}}


def test_claims_and_accounts_of_pods_exist():
    """A pod with a missing claim or account is pending forever."""
    label = NAMESPACE["Namespace"]["metadata"]["labels"]
    assert label["pod-security.kubernetes.io/enforce"] == "restricted"
    for which, pod in PODS:
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                made = NAMESPACE["PersistentVolumeClaim"]["metadata"]["name"]
                assert claim["claimName"] == made, which
        if "serviceAccountName" in pod:
            assert pod["serviceAccountName"] == NAMESPACE["ServiceAccount"]["metadata"]["name"]
            assert pod["automountServiceAccountToken"] is False
    for kind, document in NAMESPACE.items():
        assert kind == "Namespace" or document["metadata"]["namespace"] == "streamssl"


def test_the_check_of_a_crd_finds_a_misspelt_key():
    """The API server drops such a key silently; a check that cannot fail proves nothing."""
    schema = {"properties": {"spec": {"properties": {"rayVersion": {"type": "string"}}}}}
    for name in ("apiVersion", "kind"):
        schema["properties"][name] = {"type": "string"}
    crd = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    good = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": {"rayVersion": "2.60.0"}}
    assert list(errors(crd, good)) == []
    [found] = errors(crd, {**good, "spec": {"rayVersoin": "2.60.0"}})
    assert "rayVersoin" in found


def test_ray_knows_its_start_parameters_in_kubernetes():
    """A head node with an unknown option restarts forever."""
    known = {option.removeprefix("--") for p in ray_start.params for option in p.opts}
    for spec in SPECS.values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert set(group["rayStartParams"]) <= known
