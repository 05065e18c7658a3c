"""Readings, thresholds and mismatches of a run reach the metrics under names of the catalogue."""

import math

import pytest
from rich.console import Console

from cluster.errors import StateDiffers
from cluster.monitoring.metrics_hub import MetricsHub
from shards.errors import ConfigError
from shards.stores.range_reader import RangeReader
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.monitoring.exported_readings import exported
from streamssl.monitoring.run_facts import thresholds
from streamssl.pretrain.run_recorder import RunRecorder
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig, open_data
from streamssl.runs.run_setup import open_run
from tests.tinyrun import tiny_moco, tiny_swav


def test_only_listed_readings_are_exported():
    """A reading of a private method would be a series without a meaning; NaN is no reading."""
    readings = {"queue_age_p50": 3.0, "queue_used": 1.0, "codes_entropy": math.nan}
    found = exported({"loss": 0.5, "lr": 0.1, "readings": readings})
    assert found[("loss",)] == 0.5 and found["queue_age_steps", "p50"] == 3.0
    assert {key[0] for key in found} == {
        "loss", "learning_rate", "queue_age_steps", "assignment_entropy_nats"
    }  # fmt: skip
    hub = MetricsHub(CATALOGUE)
    hub.values.set(found)
    assert hub.values.get(("assignment_entropy_nats",)) is None


def test_thresholds_belong_to_served_series():
    """A chart would show a line at a number that no series can reach."""
    for config in (tiny_swav(), tiny_moco()):
        found = thresholds(config)
        assert {name.removeprefix("streamssl_") for name in found} <= CATALOGUE.keys()
    assert thresholds(tiny_swav())["streamssl_loss"] == {"high": math.log(12)}
    assert "streamssl_loss" not in thresholds(tiny_moco())


def test_differing_states_are_counted(shards_folder, tmp_path):
    """The run ends, and its last scrape must show the reason."""
    data = open_data(DataConfig(patterns=(str(shards_folder),)), RangeReader())
    run = open_run(tiny_swav(), data, tmp_path / "run", Console(quiet=True))
    hub = MetricsHub(CATALOGUE)
    for error, count in ((ConfigError("x"), 0), (StateDiffers("2 of 2"), 1)):
        with (
            pytest.raises(type(error)),
            RunRecorder(run, Placement(), hub, Console(quiet=True)),
        ):
            raise error
        assert hub.values.get(("state_mismatches",)) == count
