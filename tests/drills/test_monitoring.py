"""A real Prometheus scrapes a real run that loses a reader and its Control."""

import signal
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamssl.monitoring.learning_panels import BOARDS
from streamssl.runs.file_names import METRICS_ADDRESS
from tests.cluster.monitoring.counted import some_ports
from tests.drills.cluster_runs import endless
from tests.drills.processes import Run, started
from tests.prometheus import Prometheus, monitored, needs_prometheus
from tests.streamssl.monitoring.test_dashboards import filled
from tests.tinyrun import read_log

pytestmark = [pytest.mark.slow, pytest.mark.ray, needs_prometheus]

# On a machine that does all of this at once, trainers may wait.
HARMLESS = {"StreamsslStarved"}


# Resets of all counters in Prometheus; the label keeps series of different names apart.
RESETS = """max(resets(label_replace({__name__=~"streamssl_.*_total",scope=""}, "name", "$1",
"__name__", "(.*)")[20m:2s]))"""
# Processes with pages of their own, by role.
PROCESSES = 'count by (role) (up{run="run",scope="process"} == 1)'


class Scraper(threading.Thread):
    """Reads /metrics twice a second, and records every counter that falls."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address, self._closed = address, threading.Event()
        self.fallen: list[tuple[str, float, float]] = []
        self.values: dict[str, float] = {}
        self.num_scrapes = 0

    def run(self) -> None:
        while not self._closed.wait(0.5):
            try:
                with urllib.request.urlopen(f"{self._address}/metrics", timeout=10) as answer:
                    page = answer.read().decode()
            except OSError:
                continue  # the machine is busy
            found = {
                f"{sample.name}{sorted(sample.labels.items())}": sample.value
                for family in text_string_to_metric_families(page)
                if family.type in ("counter", "histogram")
                for sample in family.samples
            }
            missing = self.values.keys() - found.keys()
            self.fallen += [(name, self.values[name], -1.0) for name in missing]
            self.fallen += [
                (name, self.values[name], value)
                for name, value in found.items()
                if value < self.values.get(name, 0.0)
            ]
            self.values = found
            self.num_scrapes += 1

    def close(self) -> None:
        self._closed.set()
        self.join()


def of_kind(run: Run, kind: str) -> list[psutil.Process]:
    """Return the processes of a class of actors."""
    found = []
    for child in psutil.Process(run.process.pid).children(recursive=True):
        try:
            if f"ray::{kind}" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for(run: Run, condition, what: str) -> float:
    """Wait for the condition; return the seconds."""
    began = time.monotonic()
    run.wait_for(lambda: time.sleep(0.2) or condition(), what)
    return time.monotonic() - began


def empty_panels(prometheus: Prometheus) -> list[str]:
    """Return the panels without any data."""
    return [
        f"{board.uid}: {panel.title}"
        for board in BOARDS
        for _, panels in board.rows
        for panel in panels
        if not any(prometheus.query(filled(query.expr)) for query in panel.queries)
    ]


def processes(prometheus: Prometheus) -> dict[str, float]:
    """Return the number of processes that serve pages, by role."""
    return {one["metric"]["role"]: float(one["value"][1]) for one in prometheus.query(PROCESSES)}


def churn(run: Run) -> None:
    """Kill a reader, then Control."""
    before = run.metric("readers_lost_total")
    of_kind(run, "Reader")[0].kill()
    wait_for(run, lambda: run.metric("readers_lost_total") > before, "loss of a reader")
    wait_for(run, lambda: run.metric("actors", role="reader") == 2, "two readers")
    of_kind(run, "Control")[0].kill()
    wait_for(run, lambda: run.metric("control_term") == 2, "a second Control")
    run.wait_for_step(run.last_step + 20)


def test_prometheus_follows_a_run_through_its_losses(shards_folder: Path, tmp_path: Path) -> None:
    """A counter would fall, a target be late, a rule fail, a panel be empty, or an alert fire."""
    out, config = tmp_path / "run", endless()
    options = ("--cluster", "local", "--readers", 2, "--trainers", 2, "--price", "0.5")
    options += ("--debug-ports", str(some_ports(20)))
    with (
        monitored(tmp_path / "prometheus", out) as prometheus,
        started(config, shards_folder, out, *options) as run,
    ):
        run.wait_for((out / METRICS_ADDRESS).exists, "address")
        came = wait_for(run, lambda: prometheus.value('up{run="run",scope=""}') == 1, "target")
        scraper = Scraper((out / METRICS_ADDRESS).read_text())
        scraper.start()
        run.wait_for_step(20)
        everybody = {"reader": 2.0, "trainer": 2.0, "control": 1.0, "driver": 1.0}
        wait_for(run, lambda: processes(prometheus) == everybody, "pages of all processes")
        churn(run)
        wait_for(run, lambda: processes(prometheus) == everybody, "pages of their successors")
        began = time.monotonic()
        while (empty := empty_panels(prometheus)) and time.monotonic() - began < 90:
            run.wait_for_step(run.last_step + 5)
        wait_for(
            run, lambda: all(one["health"] == "ok" for one in prometheus.rules()), "healthy rules"
        )
        firing, scraped = prometheus.firing(), prometheus.value('count({run="run",scope=""})')
        resets = prometheus.value(RESETS)
        slowest = prometheus.value("max_over_time(scrape_duration_seconds[10m])")
        scraper.close()
        run.process.send_signal(signal.SIGINT)
        run.wait_for(lambda: not (out / METRICS_ADDRESS).exists(), "end of its pages")
        began = time.monotonic()
        while prometheus.targets():
            assert time.monotonic() - began < 30
            time.sleep(0.1)
        went = time.monotonic() - began
        assert run.end() == 130, run.text
    print(f"target came after {came:.1f} s, went after {went:.1f} s; {scraped:.0f} series; "
          f"slowest scrape {slowest:.3f} s; {scraper.num_scrapes} scrapes by hand")  # fmt: skip
    assert empty == []
    assert came < 10 and went < 10
    assert scraper.fallen == [] and scraper.num_scrapes > 20 and resets == 0
    assert firing <= HARMLESS
    steps = [fields["step"] for fields in read_log(out)]
    assert steps == list(range(1, len(steps) + 1))
    trained = scraper.values["streamssl_samples_total[('stage', 'trained')]"]
    assert 0 < trained <= 12 * len(steps)
    assert scraper.values["streamssl_samples_total[('stage', 'cropped')]"] > 0.5 * trained
