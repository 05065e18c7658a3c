"""A Prometheus of one's own finds the runs that live, and is gone when it is not wanted."""

import socket
import time
from pathlib import Path

import psutil
import pytest

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.monitoring.prometheus_server import (
    find_targets,
    follow,
    prometheus,
    prometheus_config,
    write_targets,
)
from cluster.monitoring.run_state import RunInfo
from shards.errors import ConfigError, StreamSSLError
from tests.cluster.monitoring.test_metrics_server import RUN
from tests.prometheus import Prometheus, free_port, needs_prometheus


def named(name: str) -> MetricsHub:
    metrics = MetricsHub(CATALOGUE)
    metrics.run = RunInfo(name=name, method="swav", cluster="none", num_steps=1, batch_size=1,
                          began=RUN.began)  # fmt: skip
    return metrics


def test_targets_are_the_runs_that_answer() -> None:
    """One that has ended would be down for ever, and one that begins again has another port."""
    with MetricsServer(named("a")) as one:
        address = one.url.removesuffix("/metrics")
        found = find_targets([address, "http://127.0.0.1:1"], {})
    assert found == [{"targets": [address.removeprefix("http://")], "labels": {"run": "a"}}]
    assert find_targets([address], {address: found}) == []


def test_a_run_that_is_too_busy_to_answer_stays_a_target() -> None:
    """Its series would have a gap whenever the machine is busy: when they are of most interest."""
    said = [{"targets": ["a"], "labels": {"run": "a"}}]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert find_targets([address], {address: said}, 0.2) == said
        assert find_targets([address], {}, 0.2) == []


def test_targets_are_written_whole(tmp_path: Path) -> None:
    """Prometheus reads the file at any moment, and again whenever it changes."""
    path = tmp_path / "targets.json"
    write_targets(path, [{"targets": ["a"]}])
    before = path.stat().st_mtime_ns
    write_targets(path, [{"targets": ["a"]}])
    assert path.stat().st_mtime_ns == before
    write_targets(path, [])
    assert path.read_text() == "[]" and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_rules_are_there_and_are_named() -> None:
    """A Prometheus without them has no alerts, and says nothing of it."""
    [rules] = prometheus_config(Path("targets.json"))["rule_files"]
    assert Path(rules).is_file()


def test_without_a_prometheus_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"no program `prometheus`.*apt install prometheus"),
        prometheus(tmp_path, 9090, tmp_path / "targets.json"),
    ):
        pass


@needs_prometheus
def test_a_run_is_scraped_while_it_lives(tmp_path: Path) -> None:
    """From its first seconds to its end, and not a minute longer; rules are evaluated."""
    port, targets, began = free_port(), tmp_path / "targets.json", time.monotonic()
    write_targets(targets, [])
    server, asked = MetricsServer(named("a")), Prometheus(port)
    addresses = [server.url.removesuffix("/metrics")]
    seen: list[float] = []

    def stop() -> bool:
        up = [one for one in asked.query("up") if one["value"][1] == "1"]
        if up and not seen:
            assert up[0]["metric"]["run"] == "a"
            seen.append(time.monotonic())
            server.__exit__(None, None, None)
        gone = bool(seen) and not asked.targets()
        return gone or time.monotonic() - began > 40

    with prometheus(tmp_path, port, targets) as process:
        listening = {
            one.laddr.ip
            for one in psutil.Process(process.pid).net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        }
        began = time.monotonic()
        follow(process, targets, lambda: addresses, stop)
        rules = asked.rules()
    assert listening == {"127.0.0.1"}
    assert seen and seen[0] - began < 12 and time.monotonic() - seen[0] < 14
    assert len(rules) > 20 and {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert process.returncode is not None


@needs_prometheus
def test_a_prometheus_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever looks at the page an hour later would look at nothing."""
    targets = tmp_path / "targets.json"
    write_targets(targets, [])
    with prometheus(tmp_path, free_port(), targets) as process:
        process.kill()
        with pytest.raises(StreamSSLError, match=r"prometheus ended .*prometheus\.log"):
            follow(process, targets, tuple, lambda: False)


@needs_prometheus
def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    """Prometheus itself says it in a log that nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=r"did not start.*another --port"),
            prometheus(tmp_path, port, tmp_path / "targets.json"),
        ):
            pass
