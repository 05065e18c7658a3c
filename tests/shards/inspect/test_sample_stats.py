"""Statistics of very many samples stay small and exact to three digits."""

import random

import numpy as np

from shards.inspect.sample_stats import RoundedHistogram, SampleStats
from shards.records import Reject


def histogram_of(values):
    histogram = RoundedHistogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_percentiles_are_exact_to_three_digits_in_little_memory():
    """A bucket would be described by wrong sizes, or a billion images would fill the memory."""
    rng = random.Random(0)
    values = [rng.lognormvariate(5, 3) for _ in range(20_000)]
    histogram = histogram_of(values)
    found = histogram.percentiles([5, 50, 95, 100])
    for name, percent in (("p5", 5), ("p50", 50), ("p95", 95), ("p100", 100)):
        assert abs(found[name] / np.percentile(values, percent) - 1) < 0.01
    assert len(histogram._counts) < 9_000


def test_whole_numbers_below_a_thousand_are_exact():
    """256 pixels would be shown as 255.3."""
    histogram = histogram_of((224, 256, 256, 999))
    assert histogram.percentiles([1, 50, 75, 76]) == {"p1": 224, "p50": 256, "p75": 256, "p76": 999}
    assert RoundedHistogram().percentiles([50]) == {}


def test_merged_parts_do_not_depend_on_their_order():
    """The first example would depend on which thread finished first."""
    total = SampleStats()
    for shard in (2, 0, 1):
        part = SampleStats(num_samples=1)
        part.add_reject(Reject(shard, 512, f"{shard}", "empty"))
        part.shorter_sides.add(10 * shard + 10)
        total.merge(part)
    assert total.rejects == {"empty": 3} and total.examples["empty"].shard == 0
    assert total.num_samples == 3
    assert total.shorter_sides.percentiles([1, 50, 99]) == {"p1": 10, "p50": 20, "p99": 30}
