"""Lease deadlines: how long a chunk may take, given how long chunks took. Pure."""

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from cluster.leases.lease_task import ActiveLease, ChunkTask
from shards.errors import ConfigError

# Multiples of the 95th percentile after which a chunk is hedged, and its reader given up.
_HEDGE_FACTOR = 3
_DEADLINE_FACTOR = 4
_MAX_SAMPLES = 256
_MIN_SAMPLES = 8
_PERCENTILE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseConfig:
    """Time limits of leases and readers.

    A reader may crop a chunk of up to 16 MiB for four times what 95 of 100 chunks take, within
    `min_deadline` to `max_deadline` seconds; in isolation, where images have time-outs of their
    own, for `isolated_seconds`. A reader is silent after `silence_seconds`. Readers report every
    `poll_seconds`; many readers report less often, `reports_per_second` together.
    """

    min_deadline: float = 15.0
    max_deadline: float = 120.0
    isolated_seconds: float = 900.0
    min_hedge_seconds: float = 1.0
    silence_seconds: float = 10.0
    poll_seconds: float = 0.2
    reports_per_second: float = 500.0

    def __post_init__(self) -> None:
        if not 0 < self.min_deadline <= self.max_deadline <= self.isolated_seconds:
            raise ConfigError(
                f"deadlines of {self.min_deadline:g}, {self.max_deadline:g} and "
                f"{self.isolated_seconds:g} s; they must be over 0 and rise: give "
                "min_deadline <= max_deadline <= isolated_seconds"
            )
        if not 0 < 2 * self.poll_seconds <= self.silence_seconds or self.reports_per_second <= 0:
            raise ConfigError(
                f"poll_seconds={self.poll_seconds:g}, silence_seconds={self.silence_seconds:g}, "
                f"reports_per_second={self.reports_per_second:g}; a reader must be able to report "
                "twice before it is silent: give a longer silence_seconds"
            )


class GapClock:
    """Clock that counts a gap between two readings as `max_gap` seconds at most.

    A Control that was stopped for a minute received nothing meanwhile, and must not blame readers.
    """

    def __init__(self, max_gap: float) -> None:
        self._max_gap = max_gap
        self._last: float | None = None
        self._seconds = 0.0

    def read(self, now: float) -> float:
        """Return the seconds counted until `now`; a time before the last reading adds none."""
        if self._last is not None:
            self._seconds += min(max(now - self._last, 0.0), self._max_gap)
        self._last = now if self._last is None else max(self._last, now)
        return self._seconds


class RecentDurations:
    """Percentile of the newest durations."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        self._newest.append(seconds)
        insort(self._sorted, seconds)
        if len(self._newest) > _MAX_SAMPLES:
            del self._sorted[bisect_left(self._sorted, self._newest.popleft())]

    @property
    def p95(self) -> float | None:
        """The 95th percentile; None if too few durations are known."""
        if len(self._sorted) < _MIN_SAMPLES:
            return None
        return self._sorted[math.ceil(_PERCENTILE * len(self._sorted)) - 1]


class LeaseDeadlines:
    """Time limits that follow from a `LeaseConfig` and the durations of past chunks."""

    def __init__(self, config: LeaseConfig) -> None:
        self._config = config
        self._clock = GapClock(config.silence_seconds / 2)
        self._durations = RecentDurations()

    def clock(self, now: float) -> float:
        """Return the time on the clock of the leases; see `GapClock`."""
        return self._clock.read(now)

    def add(self, task: ChunkTask, seconds: float) -> None:
        """Add the duration of a task, reading included."""
        self._durations.add(seconds / task.units)

    @property
    def p95(self) -> float | None:
        return self._durations.p95

    @property
    def deadline(self) -> float:
        """Time that a reader may crop a chunk of up to 16 MiB."""
        lower, upper = self._config.min_deadline, self._config.max_deadline
        return upper if self.p95 is None else min(max(_DEADLINE_FACTOR * self.p95, lower), upper)

    def deadline_of(self, lease: ActiveLease) -> float:
        seconds = self._config.isolated_seconds if lease.isolated else self.deadline
        return seconds * lease.task.units

    def hedge_after(self, num_readers: int) -> float | None:
        """Return when another reader may try a chunk of up to 16 MiB; None: not known yet."""
        if self.p95 is None:
            return None
        # The current task of a reader is known only as of its last report.
        lower = max(self._config.min_hedge_seconds, 2 * self.poll_seconds(num_readers))
        return max(_HEDGE_FACTOR * self.p95, lower)

    def poll_seconds(self, num_readers: int) -> float:
        """Return the time between two reports of a reader."""
        return max(self._config.poll_seconds, num_readers / self._config.reports_per_second)

    def silence_seconds(self, num_readers: int) -> float:
        """Return the time without a report after which a reader is silent."""
        return max(self._config.silence_seconds, 4 * self.poll_seconds(num_readers))
