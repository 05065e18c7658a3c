"""Compose files mount existing files, and no service is open to the network."""

import re

import yaml

from streamssl.monitoring.learning_panels import BOARDS
from tests.cluster.deployed import ROOT

FOLDER = ROOT / "cluster" / "deploy" / "compose"
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def mounted(service):
    """Return places in a container, and our files that are mounted there."""
    pairs = [volume.split(":") for volume in SERVICES[service]["volumes"]]
    return {pair[1]: FOLDER / pair[0] for pair in pairs if pair[0].startswith(".")}


def test_mounted_files_exist_and_are_read_only():
    """Docker creates an empty folder for a missing file."""
    for name, service in SERVICES.items():
        assert all(path.exists() for path in mounted(name).values())
        ours = [volume for volume in service["volumes"] if volume.startswith(".")]
        assert all(volume.endswith(":ro") for volume in ours)


def test_services_listen_on_the_loopback_address():
    """They show the state of a run without a password."""
    assert "--web.listen-address=127.0.0.1:9090" in SERVICES["prometheus"]["command"]
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert SERVICES["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for service in SERVICES.values():
        assert service["network_mode"] == "host" and "ports" not in service
        assert not service["user"].startswith("0") and re.search(r":v?\d+\.\d", service["image"])


def test_prometheus_finds_its_configuration_and_its_rules():
    """Rules are searched beside the configuration."""
    places = mounted("prometheus")
    config = yaml.safe_load(places["/etc/streamssl/prometheus.yml"].read_text())
    assert "--config.file=/etc/streamssl/prometheus.yml" in SERVICES["prometheus"]["command"]
    for rules in config["rule_files"]:
        folder, _, name = f"/etc/streamssl/{rules}".rpartition("/")
        assert (places[folder] / name).is_file()


def test_grafana_finds_its_source_and_every_dashboard():
    """An empty list of dashboards does not explain itself."""
    places, settings = mounted("grafana"), SERVICES["grafana"]["environment"]
    [source] = yaml.safe_load((FOLDER / "grafana" / "datasources.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090" and source["type"] == "prometheus"
    [provider] = yaml.safe_load((FOLDER / "grafana" / "dashboards.yml").read_text())["providers"]
    folder = places[provider["options"]["path"]]
    assert {path.stem for path in folder.glob("*.json")} == {board.uid for board in BOARDS}
    home, _, name = settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].rpartition("/")
    assert (places[home] / name).is_file()
