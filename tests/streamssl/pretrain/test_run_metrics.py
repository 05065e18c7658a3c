"""A run in one process serves what a run on a cluster does, and says where."""

import math
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from cluster.errors import StateDiffers
from cluster.monitoring.metric_catalogue import CATALOGUE
from cluster.monitoring.metrics_hub import Metrics
from shards.errors import ConfigError
from shards.stores.range_reader import RangeReader
from streamssl.pretrain.metric_names import EXPORTED, exported
from streamssl.pretrain.run_metrics import thresholds
from streamssl.pretrain.run_recorder import RunKeeper
from streamssl.runs.file_names import METRICS_ADDRESS
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig, open_data
from streamssl.runs.run_setup import open_run
from tests.tinyrun import tiny_moco, tiny_swav, train_here


def scrape(out: Path) -> dict[str, float]:
    """Every series by name and label values."""
    with urllib.request.urlopen((out / METRICS_ADDRESS).read_text() + "/metrics") as answer:
        page = answer.read().decode()
    return {
        " ".join((sample.name.removeprefix("streamssl_"), *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_run_in_this_process_serves_what_it_measures(shards_folder: Path, tmp_path: Path) -> None:
    """The same names as on a cluster; what there is none of is absent."""
    out, seen = tmp_path / "run", {}

    def stop() -> bool:
        deadline = time.monotonic() + 10
        while "disk_free_bytes out" not in (found := scrape(out)) or "lead_seconds" not in found:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        seen.update(found)
        return found["train_step"] >= 4

    train_here(tiny_swav(), shards_folder, out, stop=stop)
    assert not (out / METRICS_ADDRESS).exists()
    assert seen["train_step"] == 4 and seen["steps_wanted"] == 6
    assert seen["samples_total trained"] == 64 <= seen["samples_total cropped"]
    assert seen["bucket_bytes_total file"] > 0 and seen["bucket_requests_total file"] > 0
    assert seen["bucket_errors_total file throttled"] == 0
    assert seen["memory_bytes driver"] > 1e8 and seen["buffer_limit_bytes reader"] > 0
    assert 0 < seen["disk_free_bytes out"] <= seen["disk_size_bytes out"]
    assert seen["gradient_norm"] > 0 and seen["queue_fill_ratio"] == 1
    phases = ("copy", "forward_backward", "collectives", "optimizer")
    inside = sum(seen[f"step_phase_seconds_total {phase}"] for phase in phases)
    assert 0.5 * seen["step_seconds_sum"] < inside <= seen["step_seconds_sum"] * 1.01
    assert seen["step_phase_seconds_total checkpoint"] > 0  # that of step 2
    absent = {"world_size", "control_term", "knn_accuracy_ratio", "queue_drift"}
    assert not absent & seen.keys()


def test_what_methods_report_goes_by_names_of_the_catalogue() -> None:
    """What is not in the list stays in the log; what is no number is no reading."""
    for key in EXPORTED.values():
        metric = CATALOGUE[key[0]]
        assert metric.kind == "gauge"
        pairs = zip(key[1:], metric.labels.values(), strict=True)
        assert all(value in allowed for value, allowed in pairs)
    readings = {"queue_age_p50": 3.0, "queue_used": 1.0, "codes_entropy": math.nan}
    found = exported({"loss": 0.5, "lr": 0.1, "readings": readings})
    assert found[("loss",)] == 0.5 and found["queue_age_steps", "p50"] == 3.0
    assert {key[0] for key in found} == {
        "loss", "learning_rate", "queue_age_steps", "assignment_entropy_nats"
    }  # fmt: skip
    metrics = Metrics()
    metrics.values.set(found)
    assert metrics.values.get(("assignment_entropy_nats",)) is None


def test_thresholds_are_of_series_that_are_served() -> None:
    """A line in a chart at a number that nobody computed."""
    for config in (tiny_swav(), tiny_moco()):
        found = thresholds(config)
        assert {name.removeprefix("streamssl_") for name in found} <= CATALOGUE.keys()
    assert thresholds(tiny_swav())["streamssl_loss"] == {"high": math.log(12)}
    assert "streamssl_loss" not in thresholds(tiny_moco())


@pytest.mark.parametrize(("error", "count"), [(StateDiffers("2 of 2"), 1), (ConfigError("x"), 0)])
def test_trainers_that_differ_are_counted(
    error: Exception, count: int, shards_folder: Path, tmp_path: Path
) -> None:
    """The run ends by it, and its last scrape must say so."""
    metrics = Metrics()
    data = open_data(DataConfig(patterns=(str(shards_folder),)), RangeReader())
    run = open_run(tiny_swav(), data, tmp_path / "run", Console(quiet=True))
    keeper = RunKeeper(run, Placement(), metrics, Console(quiet=True))
    with pytest.raises(type(error)), keeper:
        raise error
    assert metrics.values.get(("state_mismatches",)) == count
