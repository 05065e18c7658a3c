"""Retries of failed requests: whether to try again, and after how long."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shards.errors import ConfigError, StreamSSLError
from shards.stores.failures.error_kinds import RequestFailure, classify_error
from shards.stores.request_counters import RequestCounters
from shards.stores.request_limit import RequestLimiter

T = TypeVar("T")

_log = logging.getLogger(__name__)

# An attempt that received so many bytes made progress: attempts are counted from 1 again.
_PROGRESS_BYTES = 1 << 16
# A user who sees no step for so long wants to know why; not more often than this.
_MIN_WAIT_TO_TELL, _TELL_SECONDS = 5.0, 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """Number and spacing of attempts of a failed request (seconds, full jitter).

    A store that asks for fewer requests is given more time: `num_throttled_attempts` with waits of
    up to `longest_throttled_wait_seconds`, of which at least half is waited. With the defaults a
    request is given up after two to four minutes in which each answer was 429 or 503. An attempt
    fails when there is no connection after `connect_timeout_seconds`, or when nothing arrives for
    `read_timeout_seconds`, however many bytes came before.
    """

    num_attempts: int = 5
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0
    num_throttled_attempts: int = 16
    longest_throttled_wait_seconds: float = 30.0
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("num_attempts", "num_throttled_attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be at least 1: 1 means no retries"
                )
        if not self.longest_throttled_wait_seconds >= 0:
            raise ConfigError(
                f"longest_throttled_wait_seconds={self.longest_throttled_wait_seconds}; it must be "
                "at least 0: 30 is plenty"
            )
        if not 0 <= self.first_wait_seconds <= self.longest_wait_seconds:
            raise ConfigError(
                f"first_wait_seconds={self.first_wait_seconds}; it must be from 0 to "
                f"longest_wait_seconds={self.longest_wait_seconds}: lower it, or raise the other"
            )
        for name in ("connect_timeout_seconds", "read_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be more than 0: a request needs some "
                    "time, 30 is plenty"
                )


class RetriesExhausted(Exception):
    """A request failed for good, with `error` as its last error after `num_attempts`."""

    def __init__(self, failure: RequestFailure, error: Exception, num_attempts: int) -> None:
        super().__init__(failure.kind)
        self.failure, self.error, self.num_attempts = failure, error, num_attempts


class RetryingClient:
    """Sends requests to one store: limited, counted, and repeated after transient failures.

    `renew` makes the client of the store anew, so that it reads its credentials again.
    """

    def __init__(
        self,
        retry: RetryConfig,
        limiter: RequestLimiter,
        counters: RequestCounters,
        name: str,
        renew: Callable[[], object] = lambda: None,
    ) -> None:
        self._retry, self._limiter, self._counters, self._name = retry, limiter, counters, name
        self._renew, self._renewing = renew, threading.Lock()
        self._num_renewed = 0
        self._told_at = float("-inf")

    def call(self, request: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Return the result of `request`. Raises as `call_with_retries` does.

        A request that fails because its credentials may have expired is sent once more, by a new
        client.
        """
        renewed = self._num_renewed
        try:
            return self._call(request, progress)
        except RetriesExhausted as exhausted:
            if not exhausted.failure.may_be_expired:
                raise
            self._count(exhausted.failure)
        with self._renewing:
            if self._num_renewed == renewed:  # else another thread was first
                self._renew()
                self._num_renewed += 1
        return self._call(request, progress)

    def stop(self) -> None:
        """End all waits: these requests and later ones raise StreamStopped."""
        self._limiter.stop()

    def _call(self, request: Callable[[], T], progress: Callable[[], int]) -> T:
        return call_with_retries(
            lambda: self._attempt(request),
            self._retry,
            progress=progress,
            on_retry=self._count,
            sleep=self._pause,
        )

    def _attempt(self, request: Callable[[], T]) -> T:
        with self._limiter.permit() as began:
            started, kind = time.monotonic(), ""
            try:
                result = request()
            except StreamSSLError:
                raise
            except Exception as error:  # each store's library raises its own types
                failure = classify_error(error)
                kind = failure.kind
                if kind == "throttled":
                    self._counters.add("throttles")
                    self._limiter.throttled(began, failure.retry_after)
                raise
            else:
                self._limiter.succeeded()
                return result
            finally:
                self._counters.add_request(self._name, time.monotonic() - started, kind)

    def _count(self, failure: RequestFailure) -> None:
        self._counters.add_retry(failure.kind)

    def _pause(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds >= _MIN_WAIT_TO_TELL and now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            _log.warning(
                "%s asks for fewer requests, or does not answer; the next one follows in %.0f s",
                self._name,
                seconds,
            )
        self._limiter.pause(seconds)


def call_with_retries(
    attempt: Callable[[], T],
    config: RetryConfig,
    *,
    classify: Callable[[Exception], RequestFailure] | None = None,
    progress: Callable[[], int] = lambda: 0,
    on_retry: Callable[[RequestFailure], object] = lambda _: None,
    sleep: Callable[[float], object] | None = None,
) -> T:
    """Return the result of `attempt`, which is repeated after transient failures.

    `progress` returns the number of bytes received so far: attempts are counted from the last one
    that made progress. Raises RetriesExhausted; errors of this project pass through unchanged.
    """
    num_failed = num_throttled = 0
    while True:
        before = progress()
        try:
            return attempt()
        except StreamSSLError:
            raise
        except Exception as error:
            failure, last = (classify or classify_error)(error), error
        if progress() - before >= _PROGRESS_BYTES:
            num_failed = num_throttled = 0
        throttled = failure.kind == "throttled"
        num_throttled += throttled
        num_failed += not throttled
        if (
            failure.is_permanent
            or num_failed >= config.num_attempts
            or num_throttled >= config.num_throttled_attempts
        ):
            raise RetriesExhausted(failure, last, num_failed + num_throttled)
        on_retry(failure)
        if throttled:
            shortest, longest = throttled_wait(num_throttled, config)
        else:
            shortest, longest = 0.0, _doubled(num_failed, config, config.longest_wait_seconds)
        (sleep or time.sleep)(failure.retry_after + random.uniform(shortest, longest))


def throttled_wait(num_throttled: int, config: RetryConfig) -> tuple[float, float]:
    """Return the bounds of the wait after so many answers that asked for fewer requests."""
    longest = _doubled(num_throttled, config, config.longest_throttled_wait_seconds)
    return longest / 2, longest


def _doubled(num_failed: int, config: RetryConfig, longest: float) -> float:
    return min(config.first_wait_seconds * 2.0 ** min(num_failed - 1, 60), longest)
