"""Totals survive whoever counted them, and series stay few."""

import pytest

from cluster.monitoring.metric_catalogue import METRICS
from cluster.monitoring.metric_values import Values, flat
from cluster.protocol.metric import MAX_OPEN_VALUES, Counted

READ = ("samples", "read")
BYTES = ("bucket_bytes", "web")


def test_a_total_goes_on_when_a_reader_dies_and_another_one_begins() -> None:
    """A counter that falls would be taken for a restart of the run."""
    values = Values()
    values.take(Counted("reader-1.1", {READ: 7}))
    values.take(Counted("reader-1.1", {READ: 9}))
    values.take(Counted("reader-1.2", {READ: 4}))
    assert values.get(READ) == 13


def test_what_was_lost_on_the_way_comes_with_the_next_word() -> None:
    """Control dies with what it has heard: readers go on counting from where they were."""
    values = Values()
    values.take(Counted("reader-1.1", {READ: 7}))
    values.take(Counted("control 1", {("generations",): 3}))
    values.take(Counted("control 2", {("generations",): 4}))
    values.take(Counted("reader-1.1", {READ: 30}))  # what Control 1 heard of it died with it
    assert values.get(READ) == 30 and values.get(("generations",)) == 7


def test_a_word_that_was_overtaken_takes_nothing_back() -> None:
    """Of two answers the older one may come last."""
    values = Values()
    for count in (5, 3, 6):
        values.take(Counted("control 1", {("generations",): count}))
    assert values.get(("generations",)) == 6


def test_gauges_of_what_is_gone_go() -> None:
    """A pool that was given back would be shown for ever."""
    values = Values()
    values.set({("pool_ready", "reader", "a"): 2, ("pool_ready", "reader", "b"): 1})
    values.remove([("pool_ready", "reader", "a"), ("pool_ready", "reader", "c")])
    assert values.get(("pool_ready", "reader", "a")) is None
    assert values.get(("pool_ready", "reader", "b")) == 1


def test_labels_stay_few_whatever_comes() -> None:
    """A label with a key, a shard or a URL in it would be a series for every sample."""
    values = Values()
    for number in range(500):
        name = f"s3://bucket/{number:06d}.tar"
        for metric in METRICS:
            if metric.kind == "counter":
                values.count((metric.name, *(name for _ in metric.labels)), 1)
            elif metric.kind == "gauge":
                values.set({(metric.name, *(name for _ in metric.labels)): 1.0})
    numbers, _ = values.snapshot()
    for metric in METRICS:
        keys = [key for key in numbers if key[0] == metric.name]
        for index, allowed in enumerate(metric.labels.values(), 1):
            found = {key[index] for key in keys}
            assert found <= {*allowed, "other"} if allowed else len(found) <= MAX_OPEN_VALUES + 1
    assert len(numbers) < 400


def test_counters_begin_at_nothing_and_not_at_their_first_event() -> None:
    """The first loss of a reader would be no increase of anything."""
    found = flat(*Values().snapshot())
    assert found["streamssl_readers_lost_total"] == 0
    assert found['streamssl_restarts_total{reason="failure",role="reader"}'] == 0
    assert not any("bucket_bytes" in name for name in found)


def test_a_name_that_is_not_in_the_catalogue_is_a_mistake() -> None:
    """It would be a series that no page, rule or dashboard knows."""
    with pytest.raises(KeyError):
        Values().count(("no_such_thing",), 1)


def test_a_histogram_is_cumulative() -> None:
    """So Prometheus wants it."""
    values = Values()
    for seconds in (0.02, 0.2, 100.0):
        values.observe("step_seconds", seconds)
    _, histograms = values.snapshot()
    assert histograms["step_seconds"].counts == [0, 1, 1, 2, 2, 2, 2, 2, 3]
    assert flat({}, histograms)["streamssl_step_seconds_sum"] == pytest.approx(100.22)
