"""Kinds of failed requests: what an error of any library says about its request."""

import errno
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shards.redaction import chain
from shards.stores.failures.asked_waits import rate_limit_reset, retry_after

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
    "certificate",  # the certificate of the server is not accepted, or ours cannot be loaded
]
_PERMANENT = ("gone", "refused", "changed", "bad_request", "certificate")
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
     r"|InvalidToken|RequestTimeTooSkewed|AuthenticationFailed|RequestExpired"
     r"|TokenRefreshRequired|ExpiredAuthenticationToken|InvalidAuthenticationInfo"
     r"|(GatedRepo|RepoNotFound|BucketNotFound|RevisionNotFound|RepoDisabled)$", "refused"),
    (r"EntryNotFound$", "gone"),
)  # fmt: skip
# Credentials with these codes may have been renewed since: in a file, or for the machine.
_EXPIRED = re.compile(
    r"Expired|InvalidToken|TokenRefreshRequired|InvalidAccessKeyId|AuthenticationFailed"
    r"|InvalidAuthenticationInfo"
)
# Types by which huggingface_hub names what the Hub answered, and the code that the Hub uses.
_HUB_TYPES = {
    "GatedRepoError": "GatedRepo",
    "RevisionNotFoundError": "RevisionNotFound",
    "BucketNotFoundError": "BucketNotFound",
    "DisabledRepoError": "RepoDisabled",
    "RepositoryNotFoundError": "RepoNotFound",
}
# What the Hub says in a header when a token is not valid.
_INVALID_TOKEN = "Invalid credentials"
_HUB_CODES = tuple(_HUB_TYPES.values())
# Types of errors of credentials that once worked; the others have none, or wrong ones.
_EXPIRED_TYPES = r"RefreshError|TokenRetrieval|SSOToken|CredentialRetrieval|ClientAuthentication"
_BY_TYPE: tuple[tuple[str, ErrorKind], ...] = (
    (rf"Credential|Unauthorized|Forbidden|ProfileNotFound|{_EXPIRED_TYPES}", "refused"),
    (r"ParamValidation", "bad_request"),  # a name that S3 cannot have
    (r"Timeout|TimedOut", "timeout"),
    (r"Connection|Connect|Disconnected|Payload|IncompleteRead|Streaming|Protocol|Network", "reset"),
)


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Kind of a failure, and how many seconds the store wants us to wait.

    `may_be_expired`: a client with new credentials may succeed.
    """

    kind: ErrorKind
    retry_after: float = 0.0
    may_be_expired: bool = False

    @property
    def is_permanent(self) -> bool:
        """True if a retry would only hide the failure."""
        return self.kind in _PERMANENT


class UnexpectedResponse(Exception):
    """The server sent something other than the requested bytes."""


def classify_error(error: BaseException) -> RequestFailure:
    """Return the kind of an error of any library.

    The outermost error in the chain decides: a body that broke is a broken connection, although
    a library may report status 400 as its cause.
    """
    parts = list(chain(error))
    if any(_is_about_certificates(part, parts) for part in parts):
        return RequestFailure("certificate")
    if hub_code(error):
        return RequestFailure("refused")
    kinds = (_kind_by_response(part) or _kind_by_type(part) for part in parts)
    kind: ErrorKind = next(filter(None, kinds), "other")
    headers = [_response(part)[2] for part in parts]
    wait = max(map(retry_after, headers))
    if kind == "throttled" and not wait:
        wait = max(map(rate_limit_reset, headers))
    expired = kind == "refused" and any(map(_may_be_expired, parts))
    return RequestFailure(kind, wait, expired)


def hub_code(error: BaseException) -> str:
    """Return why the Hub does not show a repository, such as GatedRepo; "" for other errors."""
    for part in chain(error):
        status, code, headers = _response(part)
        if code in _HUB_CODES:
            return code
        names = [kind.__name__ for kind in type(part).__mro__]
        for name in names:
            if name in _HUB_TYPES:
                return _HUB_TYPES[name]
        if "HfHubHTTPError" in names and status == 401 and _INVALID_TOKEN not in str(headers):
            return "RepoNotFound"  # as the Hub answers who is not logged in
    return ""


def _may_be_expired(error: BaseException) -> bool:
    status, code, _ = _response(error)
    if code and not code.isdigit():
        return _EXPIRED.search(code) is not None
    # S3 names no code in the answer to HEAD, whatever the reason is.
    is_head = isinstance(getattr(error, "response", None), dict) and code in ("400", "403")
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return status == 401 or is_head or re.search(_EXPIRED_TYPES, names) is not None


def _is_about_certificates(error: BaseException, parts: Sequence[BaseException]) -> bool:
    """Return True if a certificate is not accepted, or if the file with those that are is not
    readable.

    `parts` is the whole chain of the error.
    """
    if any(_response(part)[0] for part in parts):
        return False  # the server answered
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
        return True
    if isinstance(error, ssl.SSLError) and "X509" in str(error):  # the file holds no certificate
        return True
    if "CA certificate bundle" in str(error) or "Invalid CA bundle" in str(error):
        return True
    # OpenSSL does not name the file that it cannot open; who opens an object, does.
    return (
        isinstance(error, OSError)
        and error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR)
        and error.filename is None
        and len(error.args) == 2
        and error.args[1] == os.strerror(error.errno)
    )


def _kind_by_response(error: BaseException) -> ErrorKind | None:
    status, code, _ = _response(error)
    if code == "400" and isinstance(getattr(error, "response", None), dict):
        return "refused"  # the answer of S3 to HEAD with an expired token
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
    names = {str(name).lower(): value for name, value in headers.items()}
    code = str(getattr(error, "error_code", "") or names.get("x-error-code", ""))
    return status, code, headers


def _status(value: Any) -> int:
    text = str(value)
    return int(text) if text.isdigit() and len(text) == 3 else 0
