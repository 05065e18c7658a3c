"""What went wrong with a request, whether to ask again, and after how long."""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

from shards.errors import ConfigError, StreamSSLError
from shards.redaction import chain
from shards.stores.request_counters import Counters
from shards.stores.request_limit import Gate

T = TypeVar("T")

Kind = Literal[
    "reset",  # the connection broke
    "timeout",  # nothing came for too long
    "short",  # fewer bytes than were asked for
    "wrong_range",  # other bytes than were asked for
    "throttled",  # the store asks for fewer requests: 429, 503, SlowDown
    "server",  # the store failed: 500, 502, 504
    "other",  # whatever else a library raises
    "gone",  # it is not there: 404, 410
    "refused",  # it may not be read: 401, 403
    "changed",  # it is another object: 412, 416
    "bad_request",  # the store does not understand: the rest of 4xx
]
_HOPELESS = ("gone", "refused", "changed", "bad_request")
_BY_STATUS: dict[int, Kind] = {
    401: "refused", 403: "refused", 404: "gone", 408: "timeout", 410: "gone", 412: "changed",
    416: "changed", 425: "server", 429: "throttled", 503: "throttled",
}  # fmt: skip
# S3 and those who speak like it may send these with a status that says less.
_BY_CODE: tuple[tuple[str, Kind], ...] = (
    (r"SlowDown|Throttl|TooManyRequests|RequestLimitExceeded|ServiceUnavailable|ServerBusy"
     r"|BandwidthLimitExceeded", "throttled"),
    (r"RequestTimeout$", "timeout"),
    (r"InternalError", "server"),
    (r"NoSuch(Key|Bucket|Version)|BlobNotFound|ContainerNotFound", "gone"),
    (r"PreconditionFailed|InvalidRange|ConditionNotMet", "changed"),
    (r"AccessDenied|AllAccessDisabled|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
     r"|InvalidToken|RequestTimeTooSkewed|AuthenticationFailed", "refused"),
)  # fmt: skip
_BY_TYPE: tuple[tuple[str, Kind], ...] = (
    (r"Credential|Unauthorized|Forbidden", "refused"),
    (r"Timeout|TimedOut", "timeout"),
    (r"Connection|Connect|Disconnected|Payload|IncompleteRead|Streaming|Protocol|Network", "reset"),
)
# A store that asks for more patience than this is asked again after this long.
_LONGEST_RETRY_AFTER = 60.0
# A body that breaks after so many bytes was worth its attempt: the next one counts as the first.
_PROGRESS_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """How often, and after how long, a failed request is made again (seconds, full jitter).

    A request has failed once there is no connection after `connect_timeout_seconds`, or once
    nothing arrived for `read_timeout_seconds`, however much came before.
    """

    num_attempts: int = 5
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.num_attempts < 1:
            raise ConfigError(
                f"num_attempts={self.num_attempts}; it must be at least 1: 1 asks once and never "
                "again"
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
class Trouble:
    """What went wrong with a request, and how long its store asked us to stay away."""

    kind: Kind
    retry_after: float = 0.0

    @property
    def hopeless(self) -> bool:
        """Whether asking again would only hide what happened."""
        return self.kind in _HOPELESS


class WrongAnswer(Exception):
    """The server sent something other than what it was asked for."""


class GivenUp(Exception):
    """A request that failed for good: what the trouble was, the last error, after how often."""

    def __init__(self, trouble: Trouble, error: Exception, num_attempts: int) -> None:
        super().__init__(trouble.kind)
        self.trouble, self.error, self.num_attempts = trouble, error, num_attempts


class Asker:
    """Asks one store: at its pace, counted, and again after trouble that may pass."""

    def __init__(self, retry: RetryConfig, gate: Gate, counters: Counters, name: str) -> None:
        self._retry, self._gate, self._counters, self._name = retry, gate, counters, name

    def __call__(self, request: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """What `request` returns in the end. Raises GivenUp, or what is one of ours already.

        `progress` tells how many bytes have come so far: attempts are counted from the last one
        that got somewhere.
        """
        num_failed, wait = 0, self._retry.first_wait_seconds
        while True:
            before = progress()
            with self._gate.turn() as began:
                asked, kind = time.monotonic(), ""
                try:
                    result = request()
                except StreamSSLError:
                    raise
                except Exception as error:  # every store raises what its own library likes
                    trouble, failed = judge(error), error
                    kind = trouble.kind
                else:
                    self._gate.went_well()
                    return result
                finally:
                    self._counters.add_request(self._name, time.monotonic() - asked, kind)
                if trouble.kind == "throttled":
                    self._counters.add("throttles")
                    self._gate.slow_down(began, trouble.retry_after)
            if progress() - before >= _PROGRESS_BYTES:
                num_failed, wait = 0, self._retry.first_wait_seconds
            num_failed += 1
            if trouble.hopeless or num_failed >= self._retry.num_attempts:
                raise GivenUp(trouble, failed, num_failed)
            self._counters.add_retry(trouble.kind)
            time.sleep(trouble.retry_after + random.uniform(0, wait))
            wait = min(2 * wait, self._retry.longest_wait_seconds)


def judge(error: BaseException) -> Trouble:
    """What kind of trouble an error of any library is.

    What is nearer to us knows better: a body that broke is a broken connection, though libraries
    speak of status 400 behind it.
    """
    parts = list(chain(error))
    retry_after = max(_seconds(_answer(part)[2]) for part in parts)
    kinds = (_by_answer(part) or _by_type(part) for part in parts)
    return Trouble(next(filter(None, kinds), "other"), retry_after)


def _by_answer(error: BaseException) -> Kind | None:
    status, code, _ = _answer(error)
    for pattern, kind in _BY_CODE:
        if code and re.match(pattern, code):
            return kind
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return "server"
    # An answer that cannot be understood is called 400 too: that may pass.
    return "bad_request" if status > 400 else None


def _by_type(error: BaseException) -> Kind | None:
    if isinstance(error, WrongAnswer):
        return "wrong_range"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "gone"
    if isinstance(error, PermissionError):
        return "refused"
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return "refused"  # gcsfs has nothing but that word for it
    if isinstance(error, FileExistsError):
        return "changed"  # what gcsfs makes of 412
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionError):
        return "reset"
    if isinstance(error, EOFError):
        return "short"
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return next((kind for pattern, kind in _BY_TYPE if re.search(pattern, names)), None)


def error_code(error: BaseException) -> str:
    """The word by which a store names its error, such as NoSuchBucket; "" where it has none."""
    return next((code for part in chain(error) if (code := _answer(part)[1])), "")


def _answer(error: BaseException) -> tuple[int, str, Mapping[str, str]]:
    """Status, error code and headers of the answer that a library's error is about."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        about, code = answer.get("ResponseMetadata", {}), answer.get("Error", {}).get("Code", "")
        status = _number(about.get("HTTPStatusCode")) or _number(code)
        return status, str(code), about.get("HTTPHeaders", {})
    carriers = [carrier for carrier in (error, answer) if carrier is not None]
    said = (
        _number(getattr(carrier, name, 0))
        for carrier in carriers
        for name in ("status", "status_code", "code")
    )
    status = next(filter(None, said), 0)
    found = (getattr(carrier, "headers", None) for carrier in carriers)
    headers: Mapping[str, str] = next(filter(None, found), {})
    code = str(getattr(error, "error_code", "") or "")
    return status, code, headers


def _number(value: Any) -> int:
    text = str(value)
    return int(text) if text.isdigit() and len(text) == 3 else 0


def _seconds(headers: Mapping[str, str]) -> float:
    """What Retry-After says, as seconds from now."""
    said = next((str(v) for name, v in headers.items() if str(name).lower() == "retry-after"), "")
    if re.fullmatch(r"\d+(\.\d+)?", said):
        return min(float(said), _LONGEST_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(said).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
