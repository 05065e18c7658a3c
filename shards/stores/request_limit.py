"""Limit of concurrent requests to one store: additive increase, multiplicative decrease, as in TCP.

A limit below one is a duty cycle: with 1/4, the only request is active a quarter of the time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shards.errors import StreamStopped

_START = 16.0
_MIN_LIMIT, _MAX_LIMIT = 1 / 16, 256.0
_MAX_PAUSE_SECONDS = 10.0


class AdaptiveLimit:
    """Current limit, as a pure function of successes and throttled requests."""

    def __init__(self, start: float = _START) -> None:
        self.limit = start
        self._cut_at = float("-inf")

    def increase(self, num_busy: int) -> None:
        """Raise the limit after a success while `num_busy` requests were active, itself included.

        A limit that is not reached stays: the success proves nothing about a higher one.
        """
        if num_busy >= int(self.limit):
            self.limit = min(self.limit + min(self.limit, 1 / self.limit), _MAX_LIMIT)

    def decrease(self, began: float, now: float, num_busy: int) -> None:
        """Halve the limit, once for all requests that began before the last cut."""
        if began >= self._cut_at:
            self.limit = max(min(self.limit, num_busy) / 2, _MIN_LIMIT)
            self._cut_at = now

    def pause_after(self, seconds: float) -> float:
        """Return how long no request may begin after one that took `seconds`."""
        return min(seconds * max(1 / self.limit - 1, 0.0), _MAX_PAUSE_SECONDS)


class RequestLimiter:
    """Blocks threads while as many requests are active as the limit allows."""

    def __init__(
        self, limit: AdaptiveLimit | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._clock = limit or AdaptiveLimit(), clock
        self._num_busy = 0
        self._closed_until = float("-inf")
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def limit(self) -> float:
        """Maximum number of active requests."""
        return self._limit.limit

    @contextmanager
    def permit(self) -> Iterator[float]:
        """Wait until a request may begin, and hold its place; yields the time it began."""
        began = self._enter()
        try:
            yield began
        finally:
            self._leave(began)

    def succeeded(self) -> None:
        """Record that the store answered. To be called by a thread that holds a permit."""
        with self._changed:
            self._limit.increase(self._num_busy)

    def throttled(self, began: float, retry_after: float) -> None:
        """Record that the store asked for fewer requests, or for a pause of `retry_after` seconds.

        To be called by a thread that holds a permit since `began`.
        """
        with self._changed:
            now = self._clock()
            self._limit.decrease(began, now, self._num_busy)
            self._closed_until = max(self._closed_until, now + retry_after)

    def pause(self, seconds: float) -> None:
        """Wait so long. Raises StreamStopped after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, seconds)
            self._check_not_stopped()

    def stop(self) -> None:
        """End all waits for a request; they and later ones raise StreamStopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _check_not_stopped(self) -> None:
        if self._stopped:
            raise StreamStopped("stopped while it waited for its store")

    def _enter(self) -> float:
        with self._changed:
            while True:
                self._check_not_stopped()
                now = self._clock()
                if now < self._closed_until:
                    self._changed.wait(self._closed_until - now)
                elif self._num_busy >= max(1, int(self._limit.limit)):
                    self._changed.wait()
                else:
                    self._num_busy += 1
                    return now

    def _leave(self, began: float) -> None:
        with self._changed:
            now = self._clock()
            self._num_busy -= 1
            pause = self._limit.pause_after(max(now - began, 0.0))
            self._closed_until = max(self._closed_until, now + pause)
            self._changed.notify_all()
