"""Retries of failed requests: the kind of an error, whether to try again, and after how long."""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

from shards.errors import ConfigError, StreamSSLError
from shards.redaction import chain
from shards.stores.request_counters import RequestCounters
from shards.stores.request_limit import RequestLimiter

T = TypeVar("T")

ErrorKind = Literal[
    "reset",  # the connection broke
    "timeout",  # nothing arrived for too long
    "short",  # fewer bytes than requested
    "wrong_range",  # other bytes than requested
    "throttled",  # the store asks for fewer requests: 429, 503, SlowDown
    "server",  # the store failed: 500, 502, 504
    "other",  # any other error of a library
    "gone",  # the object does not exist: 404, 410
    "refused",  # access is denied: 401, 403
    "changed",  # another object has this name: 412, 416
    "bad_request",  # the store does not accept the request: the rest of 4xx
]
_PERMANENT = ("gone", "refused", "changed", "bad_request")
_BY_STATUS: dict[int, ErrorKind] = {
    401: "refused", 403: "refused", 404: "gone", 408: "timeout", 410: "gone", 412: "changed",
    416: "changed", 425: "server", 429: "throttled", 503: "throttled",
}  # fmt: skip
# S3 and compatible stores may send these codes with a status that says less.
_BY_CODE: tuple[tuple[str, ErrorKind], ...] = (
    (r"SlowDown|Throttl|TooManyRequests|RequestLimitExceeded|ServiceUnavailable|ServerBusy"
     r"|BandwidthLimitExceeded", "throttled"),
    (r"RequestTimeout$", "timeout"),
    (r"InternalError", "server"),
    (r"NoSuch(Key|Bucket|Version)|BlobNotFound|ContainerNotFound", "gone"),
    (r"PreconditionFailed|InvalidRange|ConditionNotMet", "changed"),
    (r"AccessDenied|AllAccessDisabled|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
     r"|InvalidToken|RequestTimeTooSkewed|AuthenticationFailed", "refused"),
)  # fmt: skip
_BY_TYPE: tuple[tuple[str, ErrorKind], ...] = (
    (r"Credential|Unauthorized|Forbidden", "refused"),
    (r"Timeout|TimedOut", "timeout"),
    (r"Connection|Connect|Disconnected|Payload|IncompleteRead|Streaming|Protocol|Network", "reset"),
)
# A store that asks for a longer pause gets its next request after this long.
_MAX_RETRY_AFTER = 60.0
# An attempt that received so many bytes made progress: attempts are counted from 1 again.
_PROGRESS_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """Number and spacing of attempts of a failed request (seconds, full jitter).

    An attempt fails when there is no connection after `connect_timeout_seconds`, or when nothing
    arrives for `read_timeout_seconds`, however many bytes came before.
    """

    num_attempts: int = 5
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.num_attempts < 1:
            raise ConfigError(
                f"num_attempts={self.num_attempts}; it must be at least 1: 1 means no retries"
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


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Kind of a failure, and how many seconds the store wants us to wait."""

    kind: ErrorKind
    retry_after: float = 0.0

    @property
    def is_permanent(self) -> bool:
        """True if a retry would only hide the failure."""
        return self.kind in _PERMANENT


class UnexpectedResponse(Exception):
    """The server sent something other than the requested bytes."""


class RetriesExhausted(Exception):
    """A request failed for good, with `error` as its last error after `num_attempts`."""

    def __init__(self, failure: RequestFailure, error: Exception, num_attempts: int) -> None:
        super().__init__(failure.kind)
        self.failure, self.error, self.num_attempts = failure, error, num_attempts


class RetryingClient:
    """Sends requests to one store: limited, counted, and repeated after transient failures."""

    def __init__(
        self, retry: RetryConfig, limiter: RequestLimiter, counters: RequestCounters, name: str
    ) -> None:
        self._retry, self._limiter, self._counters, self._name = retry, limiter, counters, name

    def call(self, request: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Return the result of `request`. Raises as `call_with_retries` does."""
        return call_with_retries(
            lambda: self._attempt(request), self._retry, progress=progress, on_retry=self._count
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
    num_failed, wait = 0, config.first_wait_seconds
    while True:
        before = progress()
        try:
            return attempt()
        except StreamSSLError:
            raise
        except Exception as error:
            failure, last = (classify or classify_error)(error), error
        if progress() - before >= _PROGRESS_BYTES:
            num_failed, wait = 0, config.first_wait_seconds
        num_failed += 1
        if failure.is_permanent or num_failed >= config.num_attempts:
            raise RetriesExhausted(failure, last, num_failed)
        on_retry(failure)
        (sleep or time.sleep)(failure.retry_after + random.uniform(0, wait))
        wait = min(2 * wait, config.longest_wait_seconds)


def classify_error(error: BaseException) -> RequestFailure:
    """Return the kind of an error of any library.

    The outermost error in the chain decides: a body that broke is a broken connection, although
    a library may report status 400 as its cause.
    """
    parts = list(chain(error))
    retry_after = max(_retry_after(_response(part)[2]) for part in parts)
    kinds = (_kind_by_response(part) or _kind_by_type(part) for part in parts)
    return RequestFailure(next(filter(None, kinds), "other"), retry_after)


def _kind_by_response(error: BaseException) -> ErrorKind | None:
    status, code, _ = _response(error)
    for pattern, kind in _BY_CODE:
        if code and re.match(pattern, code):
            return kind
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return "server"
    # Libraries also use 400 for an answer that they cannot parse: that may pass.
    return "bad_request" if status > 400 else None


def _kind_by_type(error: BaseException) -> ErrorKind | None:
    if isinstance(error, UnexpectedResponse):
        return "wrong_range"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "gone"
    if isinstance(error, PermissionError):
        return "refused"
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return "refused"  # gcsfs raises a plain OSError for 403
    if isinstance(error, FileExistsError):
        return "changed"  # gcsfs raises it for 412
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionError):
        return "reset"
    if isinstance(error, EOFError):
        return "short"
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return next((kind for pattern, kind in _BY_TYPE if re.search(pattern, names)), None)


def error_code(error: BaseException) -> str:
    """Return the store's own name of an error, such as NoSuchBucket; "" if it has none."""
    return next((code for part in chain(error) if (code := _response(part)[1])), "")


def _response(error: BaseException) -> tuple[int, str, Mapping[str, str]]:
    """Return status, error code and headers of the response that a library's error carries."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        fields = response.get("ResponseMetadata", {})
        code = response.get("Error", {}).get("Code", "")
        status = _status(fields.get("HTTPStatusCode")) or _status(code)
        return status, str(code), fields.get("HTTPHeaders", {})
    carriers = [carrier for carrier in (error, response) if carrier is not None]
    statuses = (
        _status(getattr(carrier, name, 0))
        for carrier in carriers
        for name in ("status", "status_code", "code")
    )
    status = next(filter(None, statuses), 0)
    found = (getattr(carrier, "headers", None) for carrier in carriers)
    headers: Mapping[str, str] = next(filter(None, found), {})
    code = str(getattr(error, "error_code", "") or "")
    return status, code, headers


def _status(value: Any) -> int:
    text = str(value)
    return int(text) if text.isdigit() and len(text) == 3 else 0


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the Retry-After header, a number or a date, as seconds from now."""
    text = next((str(v) for name, v in headers.items() if str(name).lower() == "retry-after"), "")
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return min(float(text), _MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)
