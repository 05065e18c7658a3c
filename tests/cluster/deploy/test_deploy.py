"""Files of `ray up`, images, and configurations of Prometheus are valid and agree."""

import copy
import re
import shlex
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import click
import pytest
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from tests.cluster.deploy_schema import DEPLOY
from tests.cluster.deployed import BOOT_SECONDS, METRICS_PORTS, PROJECT, ROOT, containers, pods


def shell_commands(config):
    """Yield every command that `ray up` runs on a node."""
    for name in ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
        yield from config[f"{name}_commands"]
    for kind in config["available_node_types"].values():
        yield from kind.get("worker_setup_commands", ())


@pytest.fixture(params=["aws", "gcp"])
def ray_up(request, monkeypatch):
    """A file of `ray up`, without the defaults of Ray."""
    monkeypatch.chdir(ROOT)
    return yaml.safe_load((DEPLOY / f"ray-{request.param}.yaml").read_text())


def test_ray_accepts_the_files_of_ray_up(ray_up):
    """`ray up` would refuse them with a stack trace."""
    validate_config(prepare_config(copy.deepcopy(ray_up)))


@pytest.mark.parametrize("place", [(), ("available_node_types", "readers"), ("auth",)])
def test_ray_refuses_a_misspelt_key(ray_up, place):
    """Otherwise the test above would prove nothing."""
    target = ray_up
    for name in place:
        target = target[name]
    target["max_wrokers"] = 3
    with pytest.raises(ValidationError, match="max_wrokers"):
        validate_config(prepare_config(ray_up))


def is_spot(kind):
    node = kind["node_config"]
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


def test_ray_up_and_kubernetes_have_the_same_pools(ray_up):
    """The document describes one cluster for both."""
    kinds = ray_up["available_node_types"]
    head, readers, trainers = kinds["head"], kinds["readers"], kinds["trainers"]
    assert ray_up["head_node_type"] == "head" and head["resources"] == {"CPU": 0}
    assert (is_spot(readers), is_spot(trainers), is_spot(head)) == (True, False, False)
    assert readers["resources"] == {"CPU": 16} and trainers["resources"] == {"CPU": 0, "GPU": 1}
    for name, pool in (("readers", readers), ("trainers", trainers)):
        assert pool["labels"] == {"pool": name}
        assert 0 <= pool["min_workers"] <= pool["max_workers"] <= ray_up["max_workers"]
        idle = pool.get("idle_timeout_s", 60 * ray_up["idle_timeout_minutes"])
        assert idle >= 2 * BOOT_SECONDS
    assert "," not in ray_up["provider"]["availability_zone"]


def test_nodes_of_ray_up_require_the_token_and_can_be_scraped(ray_up):
    """A node without the token is open to the network; a node without a port has no metrics."""
    assert "~/.ray/auth_token" in ray_up["file_mounts"].values()
    for name in ("head", "worker"):
        [start] = [c for c in ray_up[f"{name}_start_ray_commands"] if "ray start" in c]
        assert "RAY_AUTH_MODE=token" in start and "RAY_AUTH_TOKEN=" not in start
        words = shlex.split(start.partition("ray start ")[2])
        options = ray_start.make_parser(click.Context(ray_start)).parse_args(words)[0]
        assert options["metrics_export_port"] == "8080"
        assert options.get("dashboard_host", "127.0.0.1") == "127.0.0.1"


def test_commands_of_ray_up_install_the_locked_releases(ray_up):
    """A node that fails to install is paid for, dropped and requested again."""
    commands = list(shell_commands(ray_up))
    assert len(commands) > 10
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command
    installs = {c for c in commands if "streamssl[" in c}
    [install] = installs
    extras = re.search(r"streamssl\[([\w,]+)\] @ https://", install)
    assert extras and set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert "cluster" in extras[1].split(",")
    assert "--constraint" in install
    local = [path for path in ray_up["file_mounts"].values() if not path.startswith("~")]
    assert local == ["cluster/deploy/requirements.txt"] and all((ROOT / p).is_file() for p in local)


def scrape_jobs(name):
    config = yaml.safe_load((DEPLOY / name).read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert len(jobs) == len(config["scrape_configs"])
    return jobs


def test_prometheus_scrapes_ray_and_streamssl():
    """An alert needs scraped metrics."""
    jobs = scrape_jobs("prometheus.yml")
    assert jobs["ray"]["file_sd_configs"][0]["files"] == [
        "/tmp/ray/prom_metrics_service_discovery.json"
    ]
    assert jobs["streamssl"]["http_sd_configs"][0]["url"] == "http://127.0.0.1:9464/sd"


def test_prometheus_in_kubernetes_keeps_the_named_ports_of_our_pods():
    """A port with another name is dropped, and its panels stay empty."""
    named = {
        port["name"]: port["containerPort"]
        for _, container in containers()
        for port in container.get("ports", ())
    }
    kept = set()
    for job in scrape_jobs("prometheus-kubernetes.yml").values():
        assert job["kubernetes_sd_configs"][0]["namespaces"] == {"names": ["streamssl"]}
        [rule] = [r for r in job["relabel_configs"] if "port_name" in r["source_labels"][0]]
        assert rule["action"] == "keep"
        kept |= {named[name] for name in named if re.fullmatch(rule["regex"], name)}
    assert kept == METRICS_PORTS


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_promtool_accepts_the_configurations(name, tmp_path):
    """Prometheus would not start. Debian's promtool is built without Kubernetes."""
    config = yaml.safe_load((DEPLOY / name).read_text())
    for job in config["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None):
            job["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
        assert sum(key.endswith("_configs") and "relabel" not in key for key in job) == 1
    (tmp_path / name).write_text(yaml.safe_dump(config))
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    if promtool := shutil.which("promtool"):
        command = [promtool, "check", "config", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def instructions():
    """Return the Dockerfile as (instruction, words), with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split()[0], line.split()[1:]) for line in lines if line.strip()]


def is_ignored(path):
    """Return True if .dockerignore excludes a path: the last matching pattern decides."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.lstrip("!")
            parts = [Path(path), *Path(path).parents][:-1]
            if any(part.match(pattern.removeprefix("**/")) for part in parts):
                result = not line.startswith("!")
    return result


def test_images_contain_only_the_named_files():
    """COPY of a missing file fails; COPY of everything includes .env and .git."""
    sources = [
        source
        for name, words in instructions()
        if name == "COPY" and not words[0].startswith("--from")
        for source in words[:-1]
    ]
    assert sources and "." not in sources
    assert [s for s in sources if not (ROOT / s).exists() or is_ignored(s)] == []
    for secret in (".git/config", ".env", "runs/a/config.toml", "tests/conftest.py", "id_rsa"):
        assert is_ignored(secret)
    assert is_ignored("cluster/__pycache__/feed.cpython-311.pyc") and not is_ignored(
        "cluster/trainers/batch_feed.py"
    )


@pytest.mark.parametrize("target", ["reader", "trainer"])
def test_images_run_streamssl_as_a_plain_user(target):
    """Kubernetes refuses an image that runs as root, or whose user has only a name."""
    stage, stages = "", {}
    for name, words in instructions():
        if name == "FROM":
            stage = words[words.index("AS") + 1]
            stages[stage] = {"FROM": [words]}
        elif stage:
            stages[stage].setdefault(name, []).append(words)
    [[user]] = stages[target]["USER"]
    assert int(user.partition(":")[0]) >= 1000
    for _, pod in pods():
        assert (
            f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
        )
    [words] = stages[target]["ENTRYPOINT"]
    command = yaml.safe_load(" ".join(words))
    module, _, function = PROJECT["scripts"][command[-1]].partition(":")
    assert (module, function) == ("streamssl.cli", "main")  # imported by every test of it
    assert stages[target]["COPY"] == [[f"--from={target}-venv", "/opt/venv", "/opt/venv"]]


def test_the_deployed_lock_agrees_with_the_tested_lock():
    """A node would run other versions than the tests."""
    tested, deployed = (
        dict(
            re.findall(
                r"^([\w.-]+)==(.*)$", (folder / "requirements.txt").read_text(), re.MULTILINE
            )
        )
        for folder in (ROOT, DEPLOY)
    )
    differ = {name for name in tested.keys() & deployed.keys() if tested[name] != deployed[name]}
    assert differ == set(), "`make lock` writes both"
    assert "opencensus" in deployed  # of ray[default]: without it, no dashboard and no metrics
    assert not {"pytest", "moto", "mypy"} & deployed.keys()
    stated = [*PROJECT["dependencies"]]
    for extra in ("s3", "gcs", "cluster"):
        stated += PROJECT["optional-dependencies"][extra]
    names = {Requirement(line).name for line in stated}
    lock = (DEPLOY / "requirements.txt").read_text()
    missing = {name for name in names if not re.search(rf"^{name}==", lock, re.MULTILINE)}
    assert missing == set(), "`make lock` writes both"


def test_only_cuda_needs_the_packages_missing_from_the_reader_image():
    """A missing package would show when the first spot node starts."""
    [pattern] = re.findall(r"--invert-match '(.*?)'", (DEPLOY / "Dockerfile").read_text())
    lock = re.findall(r"^[\w.-]+", (DEPLOY / "requirements.txt").read_text(), re.MULTILINE)
    left_out = {name for name in lock if re.search(pattern, name)}
    assert {"triton", "nvidia-nccl-cu13", "nvidia-dali-cuda130"} <= left_out
    assert not {"torch", "ray", "opencv-python-headless"} & left_out
    needy = set()
    for found in distributions():
        name = found.metadata["Name"].lower().replace("_", "-")
        needs = [Requirement(line) for line in found.requires or ()]
        wanted = {need.name for need in needs if not need.marker or need.marker.evaluate()}
        if name in lock and name not in left_out and wanted & left_out:
            needy.add(name)
    assert needy == {"torch"}, "the CPU build of torch needs none of them"
