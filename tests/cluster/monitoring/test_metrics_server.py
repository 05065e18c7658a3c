"""What happened is served, on a loopback port: to Prometheus, and as JSON to pages."""

import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.monitoring.run_state import RunInfo, RunOutcome
from shards.errors import ConfigError
from shards.records import Reject
from tests.cluster.monitoring.counted import count_chunk, count_step, fetch, scrape

RUN = RunInfo(
    name="a",
    method="swav",
    cluster="none",
    num_steps=9,
    batch_size=16,
    began=1.5,
    thresholds={"streamssl_feature_std": {"low": 0.1}},
)


def address(server: MetricsServer, path: str) -> str:
    return server.url.replace("/metrics", path)


def test_a_scrape_has_what_was_counted() -> None:
    """By stage and reason, with units in the names."""
    metrics = MetricsHub(CATALOGUE)
    with MetricsServer(metrics) as server:
        count_chunk(metrics)
        count_chunk(metrics, num_kept=2, num_rejected=0, num_unselected=5)
        count_step(metrics, 1)
        count_step(metrics, 2, Reject(0, 0, "k", "empty"), Reject(0, 1, "k", "too_small"))
        found = scrape(server.url)
    expected = {
        ("streamssl_samples_total", "read"): 11,
        ("streamssl_samples_total", "unselected"): 5,
        ("streamssl_samples_total", "cropped"): 5,
        ("streamssl_samples_total", "trained"): 32,
        ("streamssl_rejects_total", "empty"): 1,
        ("streamssl_rejects_total", "too_small"): 1,
        ("streamssl_reader_busy_seconds_total", "read"): 1.0,
        ("streamssl_reader_busy_seconds_total", "crop"): 4.0,
        ("streamssl_crop_bytes_total",): 5 * 2 * 4 * 4 * 3,
        ("streamssl_readers_lost_total",): 0,
        ("streamssl_data_wait_seconds_total",): 0.2,
        ("streamssl_step_seconds_count",): 2,
        ("streamssl_step_seconds_sum",): 0.4,
        ("streamssl_step_seconds_bucket", "0.1"): 0,
        ("streamssl_step_seconds_bucket", "0.3"): 2,
        ("streamssl_step_phase_seconds_total", "copy"): 0.1,
        ("streamssl_step_phase_seconds_total", "input_wait"): 0.2,
        ("streamssl_loss",): 0.25,
        ("streamssl_learning_rate",): 0.1,
        ("streamssl_train_step",): 2,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_what_was_never_measured_is_absent() -> None:
    """A queue that is 0 full and one that does not exist are not the same."""
    metrics = MetricsHub(CATALOGUE)
    with MetricsServer(metrics) as server:
        before = scrape(server.url)
        metrics.values.set({("queue_age_steps", "p50"): 3.0})
        known = scrape(server.url)
        metrics.values.set({("queue_age_steps", "p50"): float("nan")})
        after = scrape(server.url)
    assert ("streamssl_loss",) not in before and not any("queue" in key[0] for key in before)
    assert known["streamssl_queue_age_steps", "p50"] == 3 and after == before


def test_the_state_is_the_scrape_and_how_it_came_to_it() -> None:
    """A page that shows other numbers than Prometheus is believed by nobody."""
    metrics = MetricsHub(CATALOGUE)
    metrics.run, metrics.sections["images"] = RUN, lambda: ["a"]
    with MetricsServer(metrics) as server:
        count_step(metrics, 1)
        metrics.tick()
        count_step(metrics, 2)
        metrics.history.add({"streamssl_loss": 0.125}, metrics.history.columns()["time"][-1] + 5)
        state = json.loads(fetch(address(server, "/state")))
        [first, last] = state["history"]["time"]
        later = json.loads(fetch(address(server, f"/state?since={first}")))
        found = scrape(server.url)
    assert state["version"] == 1 and state["status"] is None and state["sections"]["images"]
    assert state["run"]["name"] == "a" and state["run"]["ended"] is None
    assert state["thresholds"] == {"streamssl_feature_std": {"low": 0.1}}
    values = {key: value for key, value in state["values"].items() if "{" not in key}
    assert values == {key[0]: found[key] for key in found if len(key) == 1}
    assert state["values"]['streamssl_samples_total{stage="trained"}'] == 32
    assert state["history"]["streamssl_loss"] == [0.25, 0.125]
    assert state["history"]['streamssl_samples_total{stage="trained"}'] == [16, None]
    assert later["history"]["time"] == [last]


def test_a_run_that_ended_says_when_and_why() -> None:
    """Whoever comes an hour later must see that nothing moves any more."""
    metrics = MetricsHub(CATALOGUE)
    metrics.run, metrics.outcome = RUN, RunOutcome(at=3.0, error="the disk is full")
    with MetricsServer(metrics) as server:
        run = json.loads(fetch(address(server, "/state")))["run"]
    assert run["ended"] == 3.0 and run["error"] == "the disk is full"


def test_a_run_that_fails_is_scraped_once_more() -> None:
    """Its last numbers say why it failed; a run that nobody scrapes does not wait for anybody."""
    metrics, found = MetricsHub(CATALOGUE), []
    with pytest.raises(ConfigError), MetricsServer(metrics):
        raise ConfigError("nobody waits")
    with pytest.raises(ConfigError), MetricsServer(metrics) as server:
        scrape(server.url)
        metrics.values.count(("state_mismatches",), 1)
        later = threading.Timer(0.3, lambda: found.append(scrape(server.url)))
        later.start()
        raise ConfigError("the states differ")
    later.join()  # the run may end while the answer is on its way
    assert [one["streamssl_state_mismatches_total",] for one in found] == [1]
    assert metrics.outcome is not None and metrics.outcome.error == "the states differ"


def test_where_a_run_serves_is_written_down_while_it_does(tmp_path: Path) -> None:
    """`streamssl monitor` looks there."""
    path = tmp_path / ".metrics"
    metrics = MetricsHub(CATALOGUE)
    metrics.run = RUN
    with MetricsServer(metrics, address_file=path) as server:
        assert path.read_text() == server.url.removesuffix("/metrics")
        assert json.loads(fetch(address(server, "/sd")))[0]["labels"] == {"run": "a"}
    assert not path.exists()


def test_probes_are_asked_every_second() -> None:
    """Gauges and counters of this process, by kind; counters since the probe began."""
    metrics, numbers = MetricsHub(CATALOGUE), iter((3.0, 5.0))
    metrics.probes.append(lambda: {("steps_wanted",): 7.0, ("bucket_bytes", "b"): next(numbers)})
    metrics.tick(), metrics.tick()
    assert metrics.values.get(("steps_wanted",)) == 7
    assert metrics.values.get(("bucket_bytes", "b")) == 5


def test_readings_beyond_their_limit_are_told_apart() -> None:
    """Which one it is decides what to do."""
    metrics = MetricsHub(CATALOGUE)
    metrics.health(("feature_std", "effective_rank"), ("effective_rank",))
    assert metrics.values.get(("collapsing", "effective_rank")) == 1
    assert metrics.values.get(("collapsing", "feature_std")) == 0
    assert metrics.values.get(("collapsing", "assignments_used")) is None


def test_prometheus_is_told_where_to_scrape() -> None:
    """A port that is free one day is taken the next: nobody should have to write it down."""
    with MetricsServer(MetricsHub(CATALOGUE)) as server:
        [found] = json.loads(fetch(address(server, "/sd")))
        assert fetch(f"http://{found['targets'][0]}/healthz") == b"ok\n"


def test_more_pages_are_served_beside_them() -> None:
    """The live page stands on its own, and what is not there is said to be elsewhere."""
    pages = {"/": lambda _: Answer(b"<p>", "text/html")}
    with MetricsServer(MetricsHub(CATALOGUE), pages=pages) as server:
        assert fetch(address(server, "/")) == b"<p>"
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(address(server, "/nothing"))
        assert refused.value.code == 404 and b"/metrics" in refused.value.read()
        with pytest.raises(urllib.error.HTTPError, match="400"):
            fetch(address(server, "/state?since=yesterday"))


def test_two_runs_in_one_process_count_apart() -> None:
    """A global registry would refuse the second run, or add the two up."""
    one, other = MetricsHub(CATALOGUE), MetricsHub(CATALOGUE)
    count_step(one, 7)
    with MetricsServer(one) as first, MetricsServer(other) as second:
        assert scrape(first.url)["streamssl_samples_total", "trained"] == 16
        assert scrape(second.url)["streamssl_samples_total", "trained"] == 0


def test_it_listens_on_the_loopback_only() -> None:
    """Nobody on the network is let in by default."""
    with MetricsServer(MetricsHub(CATALOGUE)) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        listening = [
            connection.laddr.ip
            for connection in psutil.Process().net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
    assert listening == ["127.0.0.1"]


def test_a_taken_port_is_a_sentence() -> None:
    """Before anything is trained, with the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(.*in use.*another --metrics-port"):
            MetricsServer(MetricsHub(CATALOGUE), port)


def test_the_port_is_free_again_after_the_run() -> None:
    """A resume with the same --metrics-port must work at once."""
    with MetricsServer(MetricsHub(CATALOGUE)) as server:
        url = server.url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    port = int(url.split(":")[2].split("/")[0])
    with MetricsServer(MetricsHub(CATALOGUE), port) as server:
        assert server.url == url
