"""`streamssl monitor` runs a Prometheus that scrapes exactly the runs that live."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.monitoring.prometheus_server import (
    find_targets,
    open_prometheus,
    prometheus_fields,
    update_targets,
    write_targets,
)
from shards.errors import ConfigError, StreamSSLError
from streamssl.monitoring.catalogue import CATALOGUE
from tests.cluster.monitoring.test_metrics_server import RUN
from tests.prometheus import Prometheus, free_port, needs_prometheus


def hub_of(name: str) -> MetricsHub:
    hub = MetricsHub(CATALOGUE)
    hub.run = replace(RUN, name=name)
    return hub


def test_targets_are_the_runs_that_answer():
    """An ended run would be down forever, and a restarted one has another port."""
    with MetricsServer(hub_of("a")) as one:
        address = one.url.removesuffix("/metrics")
        found = find_targets([address, "http://127.0.0.1:1"], {})
    assert found == [{"targets": [address.removeprefix("http://")], "labels": {"run": "a"}}]
    assert find_targets([address], {address: found}) == []


def test_a_busy_run_stays_a_target():
    """Its series would have a gap when the machine is busy."""
    known = [{"targets": ["a"], "labels": {"run": "a"}}]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert find_targets([address], {address: known}, 0.2) == known
        assert find_targets([address], {}, 0.2) == []


def test_the_target_file_changes_only_with_the_targets(tmp_path):
    """Prometheus reads it at any moment, and again at each change."""
    path = tmp_path / "targets.json"
    write_targets(path, [{"targets": ["a"]}])
    before = path.stat().st_mtime_ns
    write_targets(path, [{"targets": ["a"]}])
    assert path.stat().st_mtime_ns == before
    write_targets(path, [])
    assert path.read_text() == "[]" and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_the_configuration_names_the_rules():
    """A Prometheus without rules has no alerts, and does not say so."""
    [rules] = prometheus_fields(Path("targets.json"))["rule_files"]
    assert Path(rules).is_file()


def test_a_missing_prometheus_is_one_sentence(tmp_path, monkeypatch):
    """A stack trace instead of the package to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"no program `prometheus`.*apt install prometheus"),
        open_prometheus(tmp_path, 9090, tmp_path / "targets.json"),
    ):
        pass


@needs_prometheus
def test_prometheus_loads_the_rules_and_follows_the_runs(tmp_path):
    """A run that ended must leave the targets, and other machines must not reach Prometheus."""
    port, targets, seen = free_port(), tmp_path / "targets.json", []
    write_targets(targets, [])
    server = MetricsServer(hub_of("a"))
    addresses = [server.url.removesuffix("/metrics")]

    def stop() -> bool:
        seen.append(json.loads(targets.read_text()))
        if len(seen) == 2:
            server.__exit__(None, None, None)
        return len(seen) == 3

    with open_prometheus(tmp_path, port, targets) as process:
        listening = {
            one.laddr.ip
            for one in psutil.Process(process.pid).net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        }
        update_targets(process, targets, lambda: addresses, stop)
        rules = Prometheus(port).rules()
    assert [[one["labels"] for one in found] for found in seen] == [[], [{"run": "a"}], []]
    assert listening == {"127.0.0.1"}
    assert len(rules) > 20 and {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert process.returncode is not None


@needs_prometheus
def test_an_ended_prometheus_and_a_taken_port_are_reported(tmp_path):
    """The command would wait forever; Prometheus itself writes the reason into a log only."""
    targets = tmp_path / "targets.json"
    write_targets(targets, [])
    with open_prometheus(tmp_path, free_port(), targets) as process:
        process.kill()
        with pytest.raises(StreamSSLError, match=r"prometheus ended .*prometheus\.log"):
            update_targets(process, targets, tuple, lambda: False)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"did not start.*another --port"),
        open_prometheus(tmp_path, taken.getsockname()[1], targets),
    ):
        pass
