"""How many requests of one store are under way at once: more while all is well, half after a 503.

Additive increase, multiplicative decrease, as TCP does it. A limit below one means that the only
request rests between its turns: a limit of 1/4 is at work a quarter of the time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_START = 16.0
_LEAST, _MOST = 1 / 16, 256.0
_LONGEST_REST = 10.0


class Pace:
    """The limit, as a pure function of what it is told."""

    def __init__(self, start: float = _START) -> None:
        self.limit = start
        self._cut_at = float("-inf")

    def went_well(self, num_busy: int) -> None:
        """A request came back while `num_busy` were under way, itself included."""
        if num_busy >= int(self.limit):  # a limit that nobody feels has proved nothing
            self.limit = min(self.limit + min(self.limit, 1 / self.limit), _MOST)

    def slow_down(self, began: float, now: float, num_busy: int) -> None:
        """The store asked for fewer; requests sent before the last cut say nothing new."""
        if began >= self._cut_at:
            self.limit = max(min(self.limit, num_busy) / 2, _LEAST)
            self._cut_at = now

    def rest(self, seconds: float) -> float:
        """How long nothing may begin after a request that took `seconds`."""
        return min(seconds * max(1 / self.limit - 1, 0.0), _LONGEST_REST)


class Gate:
    """Lets threads through at a pace."""

    def __init__(self, pace: Pace | None = None, clock: Callable[[], float] = time.monotonic):
        self._pace, self._clock = pace or Pace(), clock
        self._num_busy = 0
        self._closed_until = float("-inf")
        self._changed = threading.Condition()

    @property
    def limit(self) -> float:
        """How many may be under way at once."""
        return self._pace.limit

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Wait for a place among the requests under way, and hold it. Gives the time it began."""
        began = self._enter()
        try:
            yield began
        finally:
            self._leave(began)

    def went_well(self) -> None:
        """To be said by who has a turn: the request was answered."""
        with self._changed:
            self._pace.went_well(self._num_busy)

    def slow_down(self, began: float, retry_after: float) -> None:
        """To be said by who has a turn: the store asked for fewer requests, or for a pause."""
        with self._changed:
            now = self._clock()
            self._pace.slow_down(began, now, self._num_busy)
            self._closed_until = max(self._closed_until, now + retry_after)

    def _enter(self) -> float:
        with self._changed:
            while True:
                now = self._clock()
                if now < self._closed_until:
                    self._changed.wait(self._closed_until - now)
                elif self._num_busy >= max(1, int(self._pace.limit)):
                    self._changed.wait()
                else:
                    self._num_busy += 1
                    return now

    def _leave(self, began: float) -> None:
        with self._changed:
            now = self._clock()
            self._num_busy -= 1
            self._closed_until = max(
                self._closed_until, now + self._pace.rest(max(now - began, 0.0))
            )
            self._changed.notify_all()
