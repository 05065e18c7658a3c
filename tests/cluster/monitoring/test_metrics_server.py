"""A run serves its numbers on a loopback port: to Prometheus, and as JSON to pages."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from cluster.monitoring.http_server import HttpResponse
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.monitoring.run_state import RunInfo, RunOutcome
from shards.errors import ConfigError
from shards.records import Reject
from streamssl.monitoring.catalogue import CATALOGUE
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


@pytest.fixture
def hub():
    hub = MetricsHub(CATALOGUE)
    hub.run = RUN
    return hub


def state_at(server: MetricsServer, query: str = ""):
    return json.loads(fetch(f"{server.page}state{query}"))


def test_a_scrape_has_all_counts(hub):
    """Prometheus would show other numbers than the run has counted."""
    with MetricsServer(hub) as server:
        count_chunk(hub)
        count_chunk(hub, num_kept=2, num_rejected=0, num_unselected=5)
        count_step(hub, 1)
        count_step(hub, 2, Reject(0, 0, "k", "empty"), Reject(0, 1, "k", "too_small"))
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


def test_unmeasured_gauges_are_absent(hub):
    """An empty queue and a missing queue would look the same."""
    with MetricsServer(hub) as server:
        before = scrape(server.url)
        hub.values.set({("queue_age_steps", "p50"): 3.0})
        known = scrape(server.url)
        hub.values.set({("queue_age_steps", "p50"): float("nan")})
        after = scrape(server.url)
    assert ("streamssl_loss",) not in before and not any("queue" in key[0] for key in before)
    assert known["streamssl_queue_age_steps", "p50"] == 3 and after == before


def test_the_state_agrees_with_the_scrape_and_has_a_history(hub):
    """The live page would show other numbers than Prometheus."""
    hub.sections["images"] = lambda: ["a"]
    with MetricsServer(hub) as server:
        count_step(hub, 1)
        hub.tick()
        count_step(hub, 2)
        hub.history.add({"streamssl_loss": 0.125}, hub.history.columns()["time"][-1] + 5)
        state = state_at(server)
        [first, last] = state["history"]["time"]
        later = state_at(server, f"?since={first}")
        found = scrape(server.url)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            state_at(server, "?since=yesterday")
    assert state["version"] == 1 and state["status"] is None and state["sections"]["images"]
    assert state["run"]["name"] == "a" and state["run"]["ended"] is None
    assert state["thresholds"] == RUN.thresholds
    values = {key: value for key, value in state["values"].items() if "{" not in key}
    assert values == {key[0]: found[key] for key in found if len(key) == 1}
    assert state["values"]['streamssl_samples_total{stage="trained"}'] == 32
    assert state["history"]["streamssl_loss"] == [0.25, 0.125]
    assert state["history"]['streamssl_samples_total{stage="trained"}'] == [16, None]
    assert later["history"]["time"] == [last]


@pytest.mark.parametrize(
    "error",
    [KeyError("x\ny"), ValueError("\udcff"), RecursionError(), OSError(28, "No space left")],
)
def test_a_page_that_fails_answers_with_a_sentence(hub, error, capfd):
    """A traceback hid the messages of the run, and the browser got an empty answer."""

    def fail(_):
        raise error

    with MetricsServer(hub, pages={"/bad": fail}) as server:
        with pytest.raises(urllib.error.HTTPError, match="500") as answer:
            fetch(f"{server.page}bad")
        text = answer.value.read().decode()
        assert fetch(f"{server.page}healthz") == b"ok\n"
    assert text.startswith(f"the page /bad cannot be made ({type(error).__name__}:")
    assert text.count("\n") == 1 and "Traceback" not in text + "".join(capfd.readouterr())


def test_a_probe_that_fails_costs_only_its_reading(hub, caplog):
    """The thread would end with a traceback, and charts and totals with it."""
    seen, kept = [], []

    def fail():
        seen.append(1)
        raise ValueError("no such disk")

    hub.probes += [fail, lambda: {("steps_wanted",): 7.0}]
    hub.keep_totals = lambda: kept.append(1)
    with MetricsServer(hub):
        deadline = time.monotonic() + 10
        while len(seen) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert hub.values.get(("steps_wanted",)) == 7 and len(hub.history.columns()["time"]) >= 2
    assert len(kept) >= len(seen) >= 2
    assert [record.message for record in caplog.records] == [
        "a reading of /metrics failed, others go on: no such disk"
    ]


def test_the_state_has_the_end_and_the_error(hub):
    """A user who returns an hour later must see that the run has failed."""
    hub.outcome = RunOutcome(at=3.0, error="the disk is full")
    with MetricsServer(hub) as server:
        run = state_at(server)["run"]
    assert run["ended"] == 3.0 and run["error"] == "the disk is full"


def test_a_failed_run_waits_for_one_more_scrape(hub):
    """Its last numbers explain the failure; a run without a Prometheus must not wait."""
    found = []
    with pytest.raises(ConfigError), MetricsServer(hub):
        raise ConfigError("no Prometheus")
    with pytest.raises(ConfigError), MetricsServer(hub) as server:
        scrape(server.url)
        hub.values.count(("state_mismatches",), 1)
        later = threading.Timer(0.1, lambda: found.append(scrape(server.url)))
        later.start()
        raise ConfigError("the states differ")
    later.join()  # the run may end while the answer is on its way
    assert [one["streamssl_state_mismatches_total",] for one in found] == [1]
    assert hub.outcome is not None and hub.outcome.error == "the states differ"


def test_the_address_file_exists_while_the_server_is_open(hub, tmp_path):
    """`streamssl monitor` would not find the run."""
    path = tmp_path / ".metrics"
    with MetricsServer(hub, address_file=path) as server:
        assert path.read_text() == server.url.removesuffix("/metrics")
        [target] = json.loads(fetch(f"{server.page}sd"))
        assert target["labels"] == {"run": "a"}
        assert fetch(f"http://{target['targets'][0]}/healthz") == b"ok\n"
    assert not path.exists()


def test_probes_are_read_at_each_tick(hub):
    """Gauges and counters of this process would stay at their first values."""
    numbers = iter((3.0, 5.0))
    hub.probes.append(lambda: {("steps_wanted",): 7.0, ("bucket_bytes", "b"): next(numbers)})
    hub.tick(), hub.tick()
    assert hub.values.get(("steps_wanted",)) == 7
    assert hub.values.get(("bucket_bytes", "b")) == 5


def test_further_pages_are_served_and_others_are_listed(hub):
    """The live page would be missing."""
    pages = {"/": lambda _: HttpResponse(b"<p>", "text/html")}
    with MetricsServer(hub, pages=pages) as server:
        assert fetch(server.page) == b"<p>"
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(f"{server.page}nothing")
        assert refused.value.code == 404 and b"/metrics" in refused.value.read()


def test_two_runs_in_one_process_count_separately(hub):
    """A global registry would refuse the second run, or add the two up."""
    other = MetricsHub(CATALOGUE)
    count_step(hub, 7)
    with MetricsServer(hub) as first, MetricsServer(other) as second:
        assert scrape(first.url)["streamssl_samples_total", "trained"] == 16
        assert scrape(second.url)["streamssl_samples_total", "trained"] == 0


def test_the_server_listens_on_loopback_only_and_frees_its_port(hub):
    """Other machines could read the run; a resume could not serve on the same port."""
    with MetricsServer(hub) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        listening = [
            connection.laddr.ip
            for connection in psutil.Process().net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
    assert listening == ["127.0.0.1"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url, timeout=5)
    with MetricsServer(hub, port) as again:
        assert again.url == server.url


def test_a_taken_port_is_refused_in_one_sentence(hub):
    """A stack trace instead of a remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(.*in use.*another --metrics-port"):
            MetricsServer(hub, port)
