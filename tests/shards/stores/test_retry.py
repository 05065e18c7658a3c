"""What kind of trouble an error is, and what is done about it."""

import time
from email.utils import formatdate

import pytest
from aiohttp import ClientConnectorError, ClientPayloadError, ClientResponseError
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from fsspec.exceptions import FSTimeoutError

from shards.errors import ConfigError, ShardChanged
from shards.stores.request_counters import RequestCounters
from shards.stores.request_limit import RequestLimiter
from shards.stores.retry import (
    RequestFailure,
    RetriesExhausted,
    RetryConfig,
    RetryingClient,
    UnexpectedResponse,
    classify_error,
)


def s3_error(code, status, headers=None):
    about = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    answer = {"Error": {"Code": code, "Message": "so it is"}, "ResponseMetadata": about}
    return ClientError(answer, "GetObject")


def http_error(status, **headers):
    return ClientResponseError(None, (), status=status, headers=headers)


class CloudError(Exception):
    """Google's and Azure's clients carry their status in an attribute of the error."""

    def __init__(self, **fields):
        super().__init__("the cloud says no")
        self.__dict__.update(fields)


def caused_by(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (s3_error("SlowDown", 503), "throttled"),
        (s3_error("SlowDown", 200), "throttled"),
        (s3_error("ThrottlingException", 400), "throttled"),
        (s3_error("RequestTimeout", 400), "timeout"),
        (s3_error("InternalError", 500), "server"),
        (s3_error("NoSuchKey", 404), "gone"),
        (s3_error("404", 404), "gone"),
        (s3_error("403", 0), "refused"),
        (s3_error("PreconditionFailed", 412), "changed"),
        (s3_error("InvalidRange", 416), "changed"),
        (s3_error("ExpiredToken", 400), "refused"),
        (s3_error("MethodNotAllowed", 405), "bad_request"),
        (EndpointConnectionError(endpoint_url="http://h"), "reset"),
        (ReadTimeoutError(endpoint_url="http://h"), "timeout"),
        (http_error(429), "throttled"),
        (http_error(502), "server"),
        (http_error(599), "server"),
        (http_error(401), "refused"),
        (http_error(410), "gone"),
        (http_error(400), "other"),
        (caused_by(ClientPayloadError("cut"), CloudError(code=400)), "reset"),
        (CloudError(code=503), "throttled"),
        (CloudError(code="404"), "gone"),
        (CloudError(status_code=412), "changed"),
        (CloudError(error_code="ServerBusy", status_code=500), "throttled"),
        (caused_by(OSError(16, "busy"), s3_error("SlowDown", 503)), "throttled"),
        (FSTimeoutError(), "timeout"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "reset"),
        (EOFError(), "short"),
        (UnexpectedResponse(), "wrong_range"),
        (PermissionError(), "refused"),
        (OSError("Forbidden: b/o/1.tar\nno rights"), "refused"),
        (FileExistsError("b/o/1.tar"), "changed"),
        (FileNotFoundError(), "gone"),
        (NotADirectoryError(), "gone"),
        (OSError(5, "Input/output error"), "other"),
        (type("NoCredentialsError", (Exception,), {})(), "refused"),
        (type("ServiceRequestTimeoutError", (Exception,), {})(), "timeout"),
        (type("NobodyKnowsThis", (Exception,), {})(), "other"),
    ],
)
def test_errors_of_every_library_are_understood(error, kind):
    """Nobody imports botocore, aiohttp, google and azure here, and all of them raise their own."""
    assert classify_error(error).kind == kind


def test_a_host_that_cannot_be_reached_is_a_broken_connection():
    """The likeliest error of all."""
    key = type("Key", (), {"ssl": None, "host": "h", "port": 1, "is_ssl": False})()
    assert classify_error(ClientConnectorError(key, OSError(111, "refused"))).kind == "reset"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("99999", 60.0),
        ("soon", 0.0),
        ("", 0.0),
        (40, 40.0),
        (-60, 0.0),
    ],
)
def test_a_store_may_say_when_to_come_again(said, seconds):
    """Seconds or a date; a day is more than anybody waits for."""
    if isinstance(said, int):
        said = formatdate(time.time() + said, usegmt=True)
    for headers in ({"Retry-After": said}, {"retry-after": said}):
        trouble = classify_error(s3_error("SlowDown", 503, headers))
        assert trouble.retry_after == pytest.approx(seconds, abs=2.0)
    assert classify_error(http_error(503, **{"Retry-After": said})).retry_after == pytest.approx(
        seconds, abs=2.0
    )


@pytest.mark.parametrize("kind", ["gone", "refused", "changed", "bad_request"])
def test_what_cannot_pass_is_hopeless(kind):
    """Asking on would only hide what happened."""
    assert RequestFailure(kind).is_permanent and not RequestFailure("other").is_permanent


def asker(**fields):
    retry = RetryConfig(**({"first_wait_seconds": 0.0, "longest_wait_seconds": 0.0} | fields))
    counters = RequestCounters()
    return RetryingClient(retry, RequestLimiter(), counters, "s3://b"), counters


def test_attempts_are_counted_from_the_last_that_got_somewhere():
    """Gigabytes over a line that breaks every minute would never arrive; nor may a byte an hour
    keep a run waiting."""
    ask, counters = asker(num_attempts=3)
    got = [0]

    def some(num_bytes, until):
        def request():
            got[0] += num_bytes
            if got[0] < until:
                raise ConnectionResetError
            return "all"

        return request

    assert ask.call(some(1 << 16, 20 << 16), lambda: got[0]) == "all"
    assert counters.snapshot().requests == 20 and counters.snapshot().retries == {"reset": 19}
    got[0] = 0
    with pytest.raises(RetriesExhausted) as exhausted:
        ask.call(some(1, 100), lambda: got[0])
    assert exhausted.value.num_attempts == 3 and exhausted.value.failure.kind == "reset"


def test_waits_grow_and_are_drawn_anew(monkeypatch):
    """A thousand readers that come back in step bring the next storm."""
    waits = []
    monkeypatch.setattr("shards.stores.retry.time.sleep", waits.append)
    monkeypatch.setattr("shards.stores.retry.random.uniform", lambda low, high: high - low)
    ask, _ = asker(num_attempts=7, first_wait_seconds=1.0, longest_wait_seconds=10.0)
    with pytest.raises(RetriesExhausted):
        ask.call(lambda: 1 / 0)
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_errors_of_our_own_pass_through():
    """They have their name already."""
    ask, counters = asker()

    def request():
        raise ShardChanged("it is another one")

    with pytest.raises(ShardChanged):
        ask.call(request)
    assert counters.snapshot().requests == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attempts": 0}, r"num_attempts=0; it must be at least 1: 1 means no retries"),
        ({"first_wait_seconds": -1.0}, r"must be from 0 to longest_wait_seconds=10.0: lower it"),
        ({"first_wait_seconds": 99.0}, r"must be from 0 to longest_wait_seconds=10.0: lower it"),
        ({"connect_timeout_seconds": 0.0}, r"it must be more than 0: a request needs some time"),
        ({"read_timeout_seconds": float("nan")}, r"it must be more than 0: a request needs some"),
    ],
)
def test_retries_that_cannot_work_are_refused(fields, message):
    """No attempt at all would fall through to an error without a cause."""
    with pytest.raises(ConfigError, match=message):
        RetryConfig(**fields)
