"""Lease deadlines: the percentile of durations, and the clock that ignores long gaps."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.leases.lease_deadlines import GapClock, RecentDurations


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=8, max_size=600))
def test_the_percentile_is_that_of_the_newest_durations(seconds: list[float]) -> None:
    """Durations of an hour ago, or of another kind of shard, would set the deadline."""
    durations = RecentDurations()
    for each in seconds:
        durations.add(each)
    assert durations.p95 == np.percentile(seconds[-256:], 95, method="inverted_cdf")


def test_too_few_durations_give_no_percentile() -> None:
    """The first chunks are slow, because caches are cold: readers would be killed for it."""
    durations = RecentDurations()
    for _ in range(7):
        durations.add(0.1)
    assert durations.p95 is None


def test_a_long_gap_counts_little_and_time_never_goes_back() -> None:
    """A Control that was stopped would blame its readers."""
    clock = GapClock(2.0)
    assert [clock.read(now) for now in (10.0, 11.0, 71.0, 70.0, 72.0)] == [0, 1, 3, 3, 4]
