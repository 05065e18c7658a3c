"""The catalogue is complete, its page is true, and Prometheus takes what is served of it."""

import subprocess
from typing import get_args

from cluster.monitoring.exposition import metrics_page, registry_of
from cluster.monitoring.metric_catalogue import CATALOGUE, METRICS, PHASES
from cluster.monitoring.metric_values import Values
from cluster.monitoring.metrics_page import page
from cluster.monitoring.run_state import HISTORY
from cluster.protocol.lease_counters import Late, Loss
from cluster.protocol.metric import PROCESS_PREFIX
from shards.records import Reason
from shards.stores.retry import Kind
from tests.cluster.deployed import ROOT
from tests.prometheus import needs_promtool

# What a label may say; who, which shard and which address are for logs.
LABELS = {"role", "pool", "bucket", "stage", "reason", "kind", "on", "phase", "what",
          "direction", "reading"}  # fmt: skip


def everything() -> Values:
    """A run in which everything was measured once."""
    values = Values()
    for metric in METRICS:
        labels = [found[0] if found else "a" for found in metric.labels.values()]
        if metric.kind == "histogram":
            values.observe(metric.name, 0.2)
        elif metric.kind == "counter":
            values.count((metric.name, *labels), 1)
        else:
            values.set({(metric.name, *labels): 1.0})
    return values


def test_the_page_is_what_the_catalogue_says():
    """A metric that nobody explains is read wrongly."""
    assert (ROOT / "docs" / "metrics.md").read_text() == page(), (
        "run: python -m cluster.monitoring.metrics_page > docs/metrics.md"
    )
    assert all(f"`{metric.exposed}`" in page() for metric in METRICS)


def test_names_are_there_once_and_labels_are_bounded():
    """Two meanings under one name, or a label with an id in it."""
    assert len(CATALOGUE) == len(METRICS)
    for metric in METRICS:
        assert not metric.exposed.startswith(PROCESS_PREFIX)  # they would be added up with them
        assert set(metric.labels) <= LABELS
        assert metric.help.endswith(".") and len(metric.how) > 10
        open_labels = [name for name, found in metric.labels.items() if not found]
        assert set(open_labels) <= {"bucket", "pool"}
        assert metric.kind != "histogram" or (metric.buckets and not metric.labels)


def test_labels_have_every_word_that_the_code_says():
    """The rest would be counted as "other"."""
    for name, label, words in (
        ("rejects", "reason", get_args(Reason)),
        ("bucket_errors", "kind", get_args(Kind)),
        ("leases_reissued", "reason", (*get_args(Loss), "returned")),
        ("results_refused", "reason", get_args(Late)),
        ("step_phase_seconds", "phase", PHASES),
    ):
        assert set(CATALOGUE[name].labels[label]) == set(words)


def test_a_healthy_series_count_is_far_below_what_a_prometheus_holds():
    """The number of series is that of the catalogue, whoever runs."""
    body = metrics_page(registry_of(everything())).body.decode()
    series = [line for line in body.splitlines() if not line.startswith("#")]
    assert len(series) < 300


@needs_promtool
def test_promtool_takes_the_names_and_the_units():
    """It knows the habits of everybody else's metrics."""
    body = metrics_page(registry_of(everything())).body
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_the_history_is_of_metrics_that_exist():
    """A chart of a misspelt name is an empty chart."""
    assert set(HISTORY) <= CATALOGUE.keys() and len(set(HISTORY)) == len(HISTORY)
