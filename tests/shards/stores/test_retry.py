"""Retries: the kind of each library's errors, and the number and spacing of attempts."""

import time
from email.utils import formatdate

import pytest
from aiohttp import ClientConnectorError, ClientPayloadError, ClientResponseError
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from fsspec.exceptions import FSTimeoutError

from shards.errors import ConfigError
from shards.stores.failures.error_kinds import UnexpectedResponse, classify_error
from shards.stores.request_counters import RequestCounters
from shards.stores.request_limit import RequestLimiter
from shards.stores.retry import (
    RetriesExhausted,
    RetryConfig,
    RetryingClient,
    call_with_retries,
)

# Attributes of a connection key that the error's message needs.
KEY = type("Key", (), {"ssl": None, "host": "h", "port": 1, "is_ssl": False})()


def s3_error(code, status, headers=None):
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    response = {"Error": {"Code": code, "Message": "failed"}, "ResponseMetadata": metadata}
    return ClientError(response, "GetObject")


def http_error(status, **headers):
    return ClientResponseError(None, (), status=status, headers=headers)


class CloudError(Exception):
    """Error with its status in an attribute, as Google's and Azure's clients raise it."""

    def __init__(self, **fields):
        super().__init__("refused")
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
        (ClientConnectorError(KEY, OSError(111, "refused")), "reset"),
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
        (type("UnknownError", (Exception,), {})(), "other"),
    ],
)
def test_errors_of_each_library_are_classified(error, kind):
    """An unknown error would be retried in vain, or end a run that could go on."""
    assert classify_error(error).kind == kind


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("99999", 60.0), ("soon", 0.0), ("", 0.0), (40, 40.0), (-60, 0.0)],
)
def test_retry_after_is_a_number_or_a_date_within_bounds(value, seconds):
    """A store may ask for a day."""
    if isinstance(value, int):
        value = formatdate(time.time() + value, usegmt=True)
    for error in (
        s3_error("SlowDown", 503, {"Retry-After": value}),
        s3_error("SlowDown", 503, {"retry-after": value}),
        http_error(503, **{"Retry-After": value}),
    ):
        assert classify_error(error).retry_after == pytest.approx(seconds, abs=2.0)


def make_client(**fields):
    retry = RetryConfig(**({"first_wait_seconds": 0.0, "longest_wait_seconds": 0.0} | fields))
    counters = RequestCounters()
    return RetryingClient(retry, RequestLimiter(), counters, "s3://b"), counters


def test_attempts_are_counted_from_the_last_progress():
    """Gigabytes over a line that breaks each minute would never arrive; but a byte an hour must
    not keep a run waiting."""
    client, counters = make_client(num_attempts=3)
    received = [0]

    def receive(num_bytes, until):
        def request():
            received[0] += num_bytes
            if received[0] < until:
                raise ConnectionResetError
            return "all"

        return request

    assert client.call(receive(1 << 16, 20 << 16), lambda: received[0]) == "all"
    assert counters.snapshot().requests == 20 and counters.snapshot().retries == {"reset": 19}
    received[0] = 0
    with pytest.raises(RetriesExhausted) as exhausted:
        client.call(receive(1, 100), lambda: received[0])
    assert exhausted.value.num_attempts == 3 and exhausted.value.failure.kind == "reset"


def test_waits_grow_and_are_random(monkeypatch):
    """A thousand readers that retry at the same moment cause the next failure."""
    waits = []
    monkeypatch.setattr("shards.stores.retry.random.uniform", lambda low, high: high - low)
    config = RetryConfig(num_attempts=7, first_wait_seconds=1.0, longest_wait_seconds=10.0)
    with pytest.raises(RetriesExhausted):
        call_with_retries(lambda: 1 / 0, config, sleep=waits.append)
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


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
def test_invalid_settings_are_refused(fields, message):
    """Zero attempts would read nothing."""
    with pytest.raises(ConfigError, match=message):
        RetryConfig(**fields)
