"""Totals of /metrics go on when a run is started again."""

import io
import json
import re
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.monitoring.metric_values import MetricTotals
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.monitoring.node_costs import NodeBill
from cluster.monitoring.totals_file import TotalsFile, read_totals
from cluster.protocol.node_pools import parse_pool
from cluster.protocol.process_counts import ProcessCounts
from shards.metric import Metric
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.pretrain.run import pretrain
from streamssl.pretrain.run_totals import keep_totals
from streamssl.runs.file_names import TOTALS
from streamssl.runs.placement import Placement
from tests.tinyrun import make_shards, quiet, tiny_swav

COUNTERS = [metric for metric in CATALOGUE.values() if metric.kind == "counter"]


def started(out: Path) -> MetricsHub:
    """Return the hub of a start of the run in `out`."""
    hub = MetricsHub(CATALOGUE)
    keep_totals(hub, out, quiet())
    return hub


def run_folder(folder: Path) -> Path:
    (folder / "config.toml").touch()
    return folder


@pytest.mark.parametrize("metric", COUNTERS, ids=lambda metric: metric.name)
def test_every_counter_goes_on(metric: Metric, tmp_path: Path) -> None:
    """A total that begins at 0 again is a wrong bill; a new counter must not be forgotten."""
    out = run_folder(tmp_path)
    key = (metric.name, *(values[0] if values else "x" for values in metric.labels.values()))
    for _ in range(3):
        hub = started(out)
        hub.values.take(ProcessCounts("reader 1", {key: 2.5}))  # names come again, from 0
        hub.keep_totals()
    assert started(out).values.get(key) == 7.5


def test_histograms_go_on_and_means_are_of_this_start(tmp_path: Path) -> None:
    """The time left on a faster machine would follow the steps of the slow one."""
    out = run_folder(tmp_path)
    slow = started(out)
    for _ in range(100):
        slow.values.observe("step_seconds", 8.0)
    slow.keep_totals()
    fast = started(out)
    assert fast.mean_step_seconds() is None
    fast.values.observe("step_seconds", 0.5)
    assert fast.mean_step_seconds() == 0.5
    series = fast.state()
    assert series["values"]["streamssl_step_seconds_count"] == 101
    assert series["values"]["streamssl_step_seconds_sum"] == 800.5
    assert series["before"]["streamssl_step_seconds_count"] == 100


def test_dollars_go_on(tmp_path: Path) -> None:
    """A run on spot nodes is started again each day; its cost is the sum."""
    out = run_folder(tmp_path)
    for _ in range(2):
        hub, bill = started(out), NodeBill([(parse_pool(""), 3.0)])
        begun = bill._charged
        hub.values.take(bill.charge([{}], now=begun + 3600))
        hub.keep_totals()
    shown = started(out).values.by_series()
    assert sum(value for name, value in shown.items() if "dollars" in name) == pytest.approx(6.0)


def test_a_number_that_was_shown_is_kept(tmp_path: Path) -> None:
    """A counter that falls is a reset, and Prometheus adds its whole value to the rates."""
    out = run_folder(tmp_path)
    hub = started(out)
    with MetricsServer(hub) as server:
        for number in range(1, 4):
            hub.values.count(("crop_bytes",), 7.0)
            page = urllib.request.urlopen(server.url, timeout=10).read().decode()
            assert f"streamssl_crop_bytes_total {7.0 * number}" in page
            kept = read_totals(out / TOTALS)  # as after a kill -9 at this moment
            assert kept is not None and kept.counters["crop_bytes",] == 7.0 * number
        hub.values.count(("crop_bytes",), 1.0)
    assert started(out).values.get(("crop_bytes",)) == 22.0


def test_a_folder_that_is_no_run_stays_empty(tmp_path: Path) -> None:
    """A start that finds no batch must leave nothing behind."""
    started(tmp_path).keep_totals()
    assert list(tmp_path.iterdir()) == []


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda fields: {key: value for key, value in fields.items() if key != name}


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda _: [],
    "no counters": without("counters"),
    "another version": lambda fields: fields | {"version": 99},
    "a word": lambda fields: fields | {"counters": [[["crop_bytes"], "many"]]},
    "NaN": lambda fields: fields | {"counters": [[["crop_bytes"], float("nan")]]},
    "no name": lambda fields: fields | {"counters": [[[], 1.0]]},
    "a huge count": lambda fields: (
        fields | {"histograms": {"step_seconds": {"bounds": [], "counts": [10**400], "total": 1.0}}}
    ),
    "negative": lambda fields: fields | {"counters": [[["crop_bytes"], -1.0]]},
    "falling counts": lambda fields: (
        fields | {"histograms": {"step_seconds": {"bounds": [1.0], "counts": [5, 4], "total": 1.0}}}
    ),
    "too few counts": lambda fields: (
        fields | {"histograms": {"step_seconds": {"bounds": [1.0], "counts": [5], "total": 1.0}}}
    ),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "empty", "not UTF-8", "a folder"])
def test_a_damaged_file_is_told_and_the_log_is_used(kind: str, tmp_path: Path) -> None:
    """A run must start, and its user must know that a total is too small."""
    out = run_folder(tmp_path)
    started(out).keep_totals()
    path = out / TOTALS
    fields = json.loads(path.read_text())
    line = {"step": 1, "digest": "x", "num_samples": 16, "step_seconds": 0.5, "readings": {}}
    (out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    if kind in DAMAGE:
        path.write_text(json.dumps(DAMAGE[kind](fields)))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"" if kind == "empty" else b"\xff\xfe{")
    hub = MetricsHub(CATALOGUE)
    said = io.StringIO()
    keep_totals(hub, out, Console(file=said, width=400))
    text = said.getvalue()
    assert text.startswith(f"warning: {path} cannot be read (") and "metrics.jsonl" in text
    assert hub.values.get(("samples", "trained")) == 16
    hub.keep_totals()
    if kind != "a folder":
        assert read_totals(path) is not None


def test_totals_of_an_unknown_metric_are_left_out(tmp_path: Path) -> None:
    """A folder of a newer version must not end an older one with a KeyError."""
    hub = MetricsHub(CATALOGUE)
    hub.go_on_from(
        MetricTotals({("no_metric",): 1.0, ("loss",): 1.0, ("crop_bytes", "x"): 1.0}, {})
    )
    assert not any("no_metric" in name for name in hub.values.by_series())
    assert hub.values.get(("loss",)) is None and hub.values.get(("crop_bytes",)) == 0.0


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """A full disk must not end a run for the sake of its numbers."""
    (tmp_path / TOTALS).mkdir()
    said: list[str] = []
    file = TotalsFile(tmp_path / TOTALS, MetricsHub(CATALOGUE).values, lambda: True, said.append)
    file.save()
    file.save()
    assert len(said) == 1 and said[0].startswith(f"warning: {tmp_path / TOTALS} cannot be written")


@pytest.mark.slow
def test_a_resumed_run_counts_all_its_images(tmp_path: Path) -> None:
    """The whole path: two starts of one run, read from its pages."""
    data, out = make_shards(tmp_path / "data"), tmp_path / "run"
    pages: list[str] = []

    def stop_after(step: int) -> Callable[[], bool]:
        def stop() -> bool:
            address = (out / ".metrics").read_text()
            pages.append(urllib.request.urlopen(f"{address}/metrics", timeout=10).read().decode())
            return trained(pages[-1]) >= 16 * step

        return stop

    config, place = tiny_swav(num_steps=8, save_every=2), Placement(prices=())
    pretrain(config, str(data), out, place, quiet(), stop_after(4))
    assert trained(pages[-1]) == 64
    (out / TOTALS).unlink()  # a folder of an earlier version
    pretrain(config, str(data), out, place, quiet(), stop_after(6))
    assert trained(pages[-1]) == 96
    pretrain(replace(config, num_steps=7), str(data), out, place, quiet())
    found = read_totals(out / TOTALS)
    assert found is not None and found.counters["samples", "trained"] == 112
    assert found.histograms["step_seconds"].counts[-1] == 7
    assert found.counters["samples", "read"] > 112


def trained(page: str) -> float:
    (found,) = re.findall(r'streamssl_samples_total\{stage="trained"\} (\S+)', page)
    return float(found)
