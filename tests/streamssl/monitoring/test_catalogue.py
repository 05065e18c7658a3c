"""The catalogue of all planes is complete, documented, and accepted by Prometheus."""

import subprocess
from typing import get_args

import pytest

from cluster.monitoring.exposition import metrics_response, run_registry
from cluster.monitoring.metric_catalogue import PHASES
from cluster.monitoring.metric_values import MetricValues
from cluster.protocol.lease_counters import Late, Loss
from cluster.protocol.process_counts import PROCESS_PREFIX
from shards.input_metrics import INPUT_METRICS, store_readings
from shards.records import Reason
from shards.stores.failures.error_kinds import ErrorKind
from shards.stores.request_counters import BucketCounts, TransportCounts
from streamssl.monitoring.catalogue import CATALOGUE, METRICS
from streamssl.monitoring.exported_readings import EXPORTED
from streamssl.monitoring.metrics_page import page
from tests.cluster.deployed import ROOT
from tests.prometheus import needs_promtool

# Labels with few values; actors, shards and addresses belong into logs.
LABELS = {"role", "pool", "bucket", "stage", "reason", "kind", "on", "phase", "what",
          "direction", "reading"}  # fmt: skip


@pytest.fixture(scope="module")
def full_page():
    """/metrics of a run in which everything was measured once."""
    values = MetricValues(CATALOGUE)
    for metric in METRICS:
        labels = [found[0] if found else "a" for found in metric.labels.values()]
        if metric.kind == "histogram":
            values.observe(metric.name, 0.2)
        elif metric.kind == "counter":
            values.count((metric.name, *labels), 1)
        else:
            values.set({(metric.name, *labels): 1.0})
    return metrics_response(run_registry(values)).body


def test_the_document_lists_every_metric():
    """A metric without an explanation is read wrongly."""
    assert (ROOT / "docs" / "metrics.md").read_text() == page(), (
        "run: python -m streamssl.monitoring.metrics_page > docs/metrics.md"
    )
    assert all(f"`{metric.exposed}`" in page() for metric in METRICS)


def test_names_are_unique_and_labels_are_bounded():
    """Two meanings under one name, or a label that holds an id."""
    assert len(CATALOGUE) == len(METRICS)
    for metric in METRICS:
        assert not metric.exposed.startswith(PROCESS_PREFIX)  # rules would sum over both
        assert set(metric.labels) <= LABELS
        assert metric.help.endswith(".") and len(metric.how) > 10
        open_labels = [name for name, found in metric.labels.items() if not found]
        assert set(open_labels) <= {"bucket", "pool"}
        assert metric.kind != "histogram" or (metric.buckets and not metric.labels)


@pytest.mark.parametrize(
    ("name", "label", "words"),
    [("rejects", "reason", get_args(Reason)),
     ("bucket_errors", "kind", get_args(ErrorKind)),
     ("leases_reissued", "reason", (*get_args(Loss), "returned")),
     ("results_refused", "reason", get_args(Late)),
     ("step_phase_seconds", "phase", PHASES)],
)  # fmt: skip
def test_labels_list_every_value_of_the_code(name, label, words):
    """A missing value would be counted as "other"."""
    assert set(CATALOGUE[name].labels[label]) == set(words)


def test_exported_readings_are_gauges_of_the_catalogue():
    """A reading under an unknown name would end the run."""
    for key in EXPORTED.values():
        metric = CATALOGUE[key[0]]
        assert metric.kind == "gauge"
        pairs = zip(key[1:], metric.labels.values(), strict=True)
        assert all(value in allowed for value, allowed in pairs)


def test_every_count_of_the_stores_reaches_a_metric():
    """A cache that loses its files would look healthy."""
    cache = {"cache_hits": 1, "cache_misses": 2}
    dropped = {"cache_damaged": 3, "cache_skipped": 4, "cache_evicted": 5}
    buckets = {"s3://b": BucketCounts(bytes=6)}
    counts = TransportCounts(**cache, **dropped, buckets=buckets)
    found = store_readings(counts)
    assert {key[0] for key in found} <= {metric.name for metric in INPUT_METRICS}
    assert found["bucket_bytes", "b"] == 6 and found["cache_ranges", "miss"] == 2
    dropped = {key[1]: n for key, n in found.items() if key[0] == "cache_dropped_ranges"}
    assert dropped == {"damaged": 3, "skipped": 4, "evicted": 5}


def test_series_are_few(full_page):
    """A run must not fill a Prometheus."""
    assert sum(line[0] != "#" for line in full_page.decode().splitlines()) < 310


@needs_promtool
def test_promtool_accepts_names_and_units(full_page):
    """Names would break the conventions of Prometheus."""
    done = subprocess.run(["promtool", "check", "metrics"], input=full_page, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
