"""Counts of very many numbers stay small, and say what the numbers were like."""

import random

import numpy as np

from shards.inspect.sample_stats import SampleStats, RoundedHistogram
from shards.records import Reject


def test_percentiles_are_those_of_the_numbers_to_three_digits():
    """A bucket would be described by other sizes than it has."""
    rng = random.Random(0)
    values = [rng.lognormvariate(5, 1.5) for _ in range(20_000)]
    histogram = RoundedHistogram()
    for value in values:
        histogram.add(value)
    found = histogram.percentiles([5, 50, 95, 100])
    for name, percent in (("p5", 5), ("p50", 50), ("p95", 95), ("p100", 100)):
        assert abs(found[name] / np.percentile(values, percent) - 1) < 0.01


def test_whole_numbers_below_a_thousand_are_exact():
    """256 pixels must not be shown as 255.3."""
    histogram = RoundedHistogram()
    for value in (224, 256, 256, 999):
        histogram.add(value)
    assert histogram.percentiles([1, 50, 75, 76]) == {"p1": 224, "p50": 256, "p75": 256, "p76": 999}
    assert RoundedHistogram().percentiles([50]) == {}


def test_a_million_numbers_take_a_few_kilobytes():
    """A billion images must not be a list of a billion numbers."""
    histogram = RoundedHistogram()
    for value in np.random.default_rng(0).lognormal(8, 3, 200_000):
        histogram.add(value)
    assert len(histogram._counts) < 10_000


def test_parts_add_up_in_any_order():
    """Threads finish as they like; the first example must not depend on it."""
    parts = []
    for shard in (2, 0, 1):
        part = SampleStats(num_samples=1)
        part.refuse(Reject(shard, 512, f"{shard}", "empty"))
        part.shorter_sides.add(10 * shard + 10)
        parts.append(part)
    total = SampleStats()
    for part in parts:
        total.merge(part)
    assert total.rejects == {"empty": 3} and total.examples["empty"].shard == 0
    assert total.num_samples == 3
    assert total.shorter_sides.percentiles([1, 50, 99]) == {"p1": 10, "p50": 20, "p99": 30}
