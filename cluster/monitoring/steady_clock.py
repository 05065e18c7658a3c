"""Steady clock: the time of day, which never goes back within a process.

A machine may set its clock back. Ages, rates and the time left would then be negative or absurd,
and charts would run backwards. This clock goes on at the speed of the monotonic one until the time
of day has caught up with it.
"""

import threading
import time
from collections.abc import Callable


class SteadyClock:
    """Seconds since 1970; each call returns at least what the call before returned."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._now, self._at = wall(), monotonic()

    def __call__(self) -> float:
        with self._lock:
            at = self._monotonic()
            self._now = max(self._wall(), self._now + max(0.0, at - self._at))
            self._at = at
            return self._now


steady_time = SteadyClock()
