"""The history of a run fits into memory, however long the run is."""

import itertools

from cluster.monitoring.history import History
from cluster.monitoring.live.phrases import duration
from cluster.monitoring.steady_clock import SteadyClock


def test_a_long_history_starts_at_the_beginning_with_fewer_points():
    """A week at a point a second would be a page that no browser opens."""
    history = History(num_points=8)
    for second in range(1000, 2000):
        history.add({"loss": float(second)}, now=second)
    columns = history.columns()
    assert len(columns["time"]) <= 8 and columns["time"][-1] > 1800
    assert columns["time"][0] == 1000
    gaps = {b - a for a, b in zip(columns["time"], columns["time"][1:], strict=False)}
    assert gaps == {history.interval_seconds} and columns["loss"] == columns["time"]


def test_a_clock_that_is_set_back_gives_no_negative_age():
    """Charts stood still for an hour, and ages, rates and the time left were below 0."""
    wall, passed = [1000.0], [0.0]
    clock = SteadyClock(lambda: wall[0], lambda: passed[0])
    seen = []
    for jump in (0, 1, -3600, 1, 1, 7200, -86400, 1):
        passed[0] += 1
        wall[0] += jump
        seen.append(clock())
    ages = [after - before for before, after in itertools.pairwise(seen)]
    assert min(ages) >= 1 and seen[-1] >= wall[0]
    assert duration(-5) == "0 s"


def test_unmeasured_series_leave_gaps():
    """A chart would show a 0 or a shifted line."""
    history = History()
    history.add({"a": 1.0}, now=10)
    history.add({"b": 2.0}, now=10.5)  # too early
    history.add({"b": 3.0}, now=11)
    assert history.columns() == {"time": [10, 11], "a": [1.0, None], "b": [None, 3.0]}
    assert history.columns(since=10) == {"time": [11], "b": [3.0]}
