"""Totals survive the processes that counted them, and series stay few."""

import pytest

from cluster.monitoring.metric_values import MetricValues
from cluster.protocol.process_counts import ProcessCounts
from shards.metric import MAX_OPEN_VALUES
from streamssl.monitoring.catalogue import CATALOGUE, METRICS

READ = ("samples", "read")
GENERATIONS = ("generations",)


@pytest.mark.parametrize(
    ("reports", "total"),
    [
        ([("reader-1.1", 7), ("reader-1.1", 9), ("reader-1.2", 4)], 13),  # replaced by another
        ([("reader-1.1", 7), ("control 1", 3), ("reader-1.1", 30)], 33),  # a report was lost
        ([("control 1", 5), ("control 1", 3), ("control 1", 6)], 6),  # the older report came last
    ],
)
def test_a_total_adds_the_increase_of_each_process(reports, total):
    """A counter that falls looks like a restart of the run."""
    values = MetricValues(CATALOGUE)
    for source, count in reports:
        values.take(ProcessCounts(source, {GENERATIONS: count}))
    assert values.get(GENERATIONS) == total


def test_removed_gauges_are_absent():
    """A pool that was given back would be shown forever."""
    values = MetricValues(CATALOGUE)
    values.set({("pool_ready", "reader", "a"): 2, ("pool_ready", "reader", "b"): 1})
    values.remove([("pool_ready", "reader", "a"), ("pool_ready", "reader", "c")])
    assert values.get(("pool_ready", "reader", "a")) is None
    assert values.get(("pool_ready", "reader", "b")) == 1


def test_labels_have_few_values():
    """A label with a key, a shard or a URL would be a series for every sample."""
    values = MetricValues(CATALOGUE)
    for number in range(2 * MAX_OPEN_VALUES):
        name = f"s3://bucket/{number:06d}.tar"
        for metric in METRICS:
            key = (metric.name, *(name for _ in metric.labels))
            if metric.kind == "counter":
                values.count(key, 1)
            elif metric.kind == "gauge":
                values.set({key: 1.0})
    numbers, _ = values.snapshot()
    for metric in METRICS:
        keys = [key for key in numbers if key[0] == metric.name]
        for index, allowed in enumerate(metric.labels.values(), 1):
            found = {key[index] for key in keys}
            assert found <= {*allowed, "other"} if allowed else len(found) <= MAX_OPEN_VALUES + 1
    assert len(numbers) < 400


def test_closed_counters_start_at_zero():
    """The first loss of a reader would be no increase."""
    found = MetricValues(CATALOGUE).by_series()
    assert found["streamssl_readers_lost_total"] == 0
    assert found['streamssl_restarts_total{reason="failure",role="reader"}'] == 0
    assert not any("bucket_bytes" in name for name in found)


def test_unknown_names_are_errors():
    """A series that no page, rule or dashboard knows."""
    with pytest.raises(KeyError):
        MetricValues(CATALOGUE).count(("no_such_thing",), 1)


def test_histograms_are_cumulative():
    """Prometheus would compute wrong quantiles."""
    values = MetricValues(CATALOGUE)
    for seconds in (0.02, 0.2, 100.0):
        values.observe("step_seconds", seconds)
    _, histograms = values.snapshot()
    assert histograms["step_seconds"].counts == [0, 1, 1, 2, 2, 2, 2, 2, 3]
    assert values.by_series()["streamssl_step_seconds_sum"] == pytest.approx(100.22)
