"""How long a chunk may take, by a clock that stands still while nobody looks. Pure."""

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from cluster.leases.lease_task import GivenLease, Task
from shards.errors import ConfigError

# How often the usual time a chunk may take before another reader tries it, and before it is lost.
_TIMES_TO_HEDGE = 3
_TIMES_TO_EXPIRE = 4
_MAX_SAMPLES = 256
_MIN_SAMPLES = 8
_PERCENTILE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseConfig:
    """How long is too long.

    A chunk of up to 16 MiB may be in a reader's hands for four times what 95 of 100 take, but
    `min_deadline` to `max_deadline` seconds; in isolation, where images have time-outs of
    their own, `isolated_seconds`. A reader is silent after `silence_seconds`. Readers ask every
    `poll_seconds`; many ask less often, `asks_per_second` together.
    """

    min_deadline: float = 15.0
    max_deadline: float = 120.0
    isolated_seconds: float = 900.0
    min_hedge_seconds: float = 1.0
    silence_seconds: float = 10.0
    poll_seconds: float = 0.2
    asks_per_second: float = 500.0

    def __post_init__(self) -> None:
        if not 0 < self.min_deadline <= self.max_deadline <= self.isolated_seconds:
            raise ConfigError(
                f"deadlines of {self.min_deadline:g}, {self.max_deadline:g} and "
                f"{self.isolated_seconds:g} s; they must be over 0 and rise: give "
                "min_deadline <= max_deadline <= isolated_seconds"
            )
        if not 0 < 2 * self.poll_seconds <= self.silence_seconds or self.asks_per_second <= 0:
            raise ConfigError(
                f"poll_seconds={self.poll_seconds:g}, silence_seconds={self.silence_seconds:g}, "
                f"asks_per_second={self.asks_per_second:g}; a reader must be able to ask twice "
                "before it is silent: give a longer silence_seconds"
            )


class Awake:
    """A clock that counts a gap between two looks as `max_gap` seconds at most.

    Who was stopped for a minute has heard of nobody for a minute, and must not blame them for it.
    """

    def __init__(self, max_gap: float) -> None:
        self._max_gap = max_gap
        self._last: float | None = None
        self._seconds = 0.0

    def look(self, now: float) -> float:
        """Seconds that were watched until `now`; a time before the last look adds none."""
        if self._last is not None:
            self._seconds += min(max(now - self._last, 0.0), self._max_gap)
        self._last = now if self._last is None else max(self._last, now)
        return self._seconds


class Durations:
    """What nearly all of the newest durations keep within."""

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
        """The 95th percentile; None while too few are known to tell."""
        if len(self._sorted) < _MIN_SAMPLES:
            return None
        return self._sorted[math.ceil(_PERCENTILE * len(self._sorted)) - 1]


class Pace:
    """What a `LeaseConfig` means, given how long chunks took."""

    def __init__(self, config: LeaseConfig) -> None:
        self._config = config
        self._clock = Awake(config.silence_seconds / 2)
        self._durations = Durations()

    def look(self, now: float) -> float:
        """See `Awake.look`."""
        return self._clock.look(now)

    def add(self, task: Task, seconds: float) -> None:
        """A task took so long, reading included."""
        self._durations.add(seconds / task.units)

    @property
    def p95(self) -> float | None:
        return self._durations.p95

    @property
    def deadline(self) -> float:
        """How long a chunk of the usual size may be in a reader's hands."""
        least, most = self._config.min_deadline, self._config.max_deadline
        return most if self.p95 is None else min(max(_TIMES_TO_EXPIRE * self.p95, least), most)

    def deadline_of(self, lease: GivenLease) -> float:
        seconds = self._config.isolated_seconds if lease.isolated else self.deadline
        return seconds * lease.task.units

    def to_hedge(self, num_readers: int) -> float | None:
        """After how long another reader tries a chunk of the usual size; None: not known yet."""
        if self.p95 is None:
            return None
        # What is said of a reader's hands is as old as its last report.
        least = max(self._config.min_hedge_seconds, 2 * self.poll_seconds(num_readers))
        return max(_TIMES_TO_HEDGE * self.p95, least)

    def poll_seconds(self, num_readers: int) -> float:
        """When a reader is to ask again."""
        return max(self._config.poll_seconds, num_readers / self._config.asks_per_second)

    def patience(self, num_readers: int) -> float:
        """After how long a reader that was not heard of is silent."""
        return max(self._config.silence_seconds, 4 * self.poll_seconds(num_readers))
