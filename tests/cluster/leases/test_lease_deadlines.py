"""How long a chunk may take: percentiles, and a clock that stands still while nobody looks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.leases.lease_deadlines import GapClock, RecentDurations


@given(st.lists(st.floats(0, 100), min_size=8, max_size=600))
def test_the_percentile_is_that_of_the_newest(seconds: list[float]) -> None:
    """Times of an hour ago, or of another kind of shard, would judge those of now."""
    durations = RecentDurations()
    for each in seconds:
        durations.add(each)
    assert durations.p95 == np.percentile(seconds[-256:], 95, method="inverted_cdf")


def test_a_few_durations_tell_nothing() -> None:
    """The first chunks of a run are slow, for caches are cold: readers would be killed for it."""
    durations = RecentDurations()
    for _ in range(7):
        durations.add(0.1)
    assert durations.p95 is None


def test_a_gap_counts_as_little_and_time_never_goes_back() -> None:
    """See `GapClock`: who was away must not blame others for it."""
    clock = GapClock(2.0)
    assert [clock.read(now) for now in (10.0, 11.0, 71.0, 70.0, 72.0)] == [0, 1, 3, 3, 4]
