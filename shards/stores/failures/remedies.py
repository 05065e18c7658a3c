"""Remedies: what a user can do when a store refuses access, with the variables that it reads."""

import os.path
from typing import Final

from shards.access import explain_denied
from shards.redaction import redact, short
from shards.stores.failures.error_kinds import RequestFailure, error_code, hub_code

_HTTP: Final = ("http", "https")
_S3: Final = ("s3", "s3a")
_GCS: Final = ("gs", "gcs")
_OF_AZURE: Final = ("az", "abfs", "abfss")
_AWS: Final = (
    "AWS_PROFILE, or AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY and, for temporary ones, "
    "AWS_SESSION_TOKEN"
)
_GOOGLE: Final = "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`"
_AZURE: Final = "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key or SAS"
_HUB: Final = "`hf auth login`, or HF_TOKEN"
# Where each store finds its credentials.
_CREDENTIALS: Final = {
    **dict.fromkeys(_S3, _AWS),
    **dict.fromkeys(_GCS, _GOOGLE),
    **dict.fromkeys(_OF_AZURE, _AZURE),
    "hf": _HUB,
}
# What else makes a refused request work.
_PUBLIC_S3: Final = (
    "set FSSPEC_S3_ANON=true for a public bucket, FSSPEC_S3_REQUESTER_PAYS=true for one whose "
    "readers pay, AWS_ENDPOINT_URL=https://... for another S3 service"
)
_PUBLIC: Final = {
    **dict.fromkeys(_S3, _PUBLIC_S3),
    **dict.fromkeys(_GCS, "set FSSPEC_GS_TOKEN=anon for a public bucket"),
}
# Variables with the file of the certificates that are accepted, in the order of their use.
_BUNDLES: Final = {
    **dict.fromkeys(_S3, ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")),
    **dict.fromkeys((*_GCS, *_OF_AZURE), ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")),
}
_CA_FILE: Final = "SSL_CERT_FILE"


def refusal(uri: str, failure: RequestFailure, error: BaseException) -> str:
    """Return a sentence for a request that a store refused for good: found, allowed, remedy."""
    if failure.kind == "certificate":
        return certificate_trouble(uri, error)
    also = ", also by a new client" if failure.may_be_expired else ""
    return hub_trouble(uri, error) or (
        f"access to {redact(uri)!r} was refused ({short(error, uri)}){also}; "
        f"{access_remedy(uri, failure, error)}"
    )


def lost_access(uri: str, failure: RequestFailure, error: BaseException, again: str) -> str:
    """Return a sentence for a shard that is refused after it was listed; `again` goes on."""
    if failure.kind == "certificate" or hub_code(error):
        return f"{refusal(uri, failure, error)}; {again}"
    protocol = uri.partition("://")[0]
    if isinstance(error, PermissionError) and protocol in (uri, "file"):
        return f"{explain_denied(error)}, {again}"
    also = ", also by a new client" if failure.may_be_expired else ""
    sources = f" ({_CREDENTIALS[protocol]})" if protocol in _CREDENTIALS else ""
    do = f"the credentials may have run out: renew them{sources}"
    if protocol in _HTTP and redact(uri) != uri:
        do = "its signature may have run out: a signed address expires, so sign it again"
    public = f"; or {_PUBLIC[protocol]}" if protocol in _PUBLIC else ""
    return (
        f"access to {redact(uri)} was refused ({short(error, uri)}){also}; it was listed before, "
        f"so {do}, {again}{public}"
    )


def access_remedy(uri: str, failure: RequestFailure, error: BaseException) -> str:
    """Return what to do after access to `uri` was refused."""
    protocol = uri.partition("://")[0]
    if protocol in _HTTP:
        if redact(uri) != uri:
            return "a signed address expires, so sign it again; or correct user and password"
        return (
            "the server wants a login or a signed address: give https://user:password@host/... or "
            "an address with its signature"
        )
    if protocol not in _CREDENTIALS:
        return "check who may read it: `ls -l` shows it" if "://" not in uri else "check who may"
    sources = _CREDENTIALS[protocol]
    has_no_reason = error_code(error).isdigit()  # S3 names none in the answer to HEAD
    if failure.may_be_expired and not has_no_reason:
        return f"renew the credentials: {sources}"
    public = f"; or {_PUBLIC[protocol]}" if protocol in _PUBLIC else ""
    do = "check or renew" if failure.may_be_expired else "check"
    return f"{do} the credentials ({sources}) and the bucket's policy{public}"


def certificate_trouble(uri: str, error: BaseException) -> str:
    """Return a sentence for a certificate that is not accepted, with the variable to correct."""
    names = _BUNDLES.get(uri.partition("://")[0], (_CA_FILE,))
    for name in names:
        file = _value(name)
        if file and not os.path.exists(file):
            return f"{name}={file} does not exist; name a file of certificates, or unset {name}"
        if file and not os.path.isfile(file):
            return f"{name}={file} is no file; name a file of certificates, or unset {name}"
    used = next((f"{name}={_value(name)}" for name in names if _value(name)), "")
    told = f"; {used} is used" if used else ""
    return (
        f"the certificate of the server of {redact(uri)} was not accepted "
        f"({short(error, uri)}){told}; name a file with the certificate of its authority: "
        f"{names[0]}=/path/to/ca.pem"
    )


def hub_trouble(uri: str, error: BaseException) -> str:
    """Return a sentence for a repository that the Hub does not show; "" for another error."""
    code = hub_code(error)
    page = _page(uri)
    name = redact(uri)
    if code == "GatedRepo":
        return (
            f"{name} is in a gated repository; its readers must accept its terms: accept them on "
            f"{page}, then log in with {_HUB}=hf_..."
        )
    if code in ("RepoNotFound", "BucketNotFound"):
        return (
            f"{name}: the Hub shows no such repository; it does not exist, or it is private: check "
            f"the name on {page} (data sets are hf://datasets/OWNER/NAME), or log in with an "
            f"account that may read it: {_HUB}=hf_..."
        )
    if code == "RevisionNotFound":
        return (
            f"{name}: the repository has no such revision; give a branch, tag or commit that "
            f"{page} lists, such as hf://datasets/OWNER/NAME@main/..."
        )
    if code == "RepoDisabled":
        return f"{name}: the Hub has disabled this repository, see {page}; use another one"
    return ""


def _page(uri: str) -> str:
    """Return the page of a repository for people."""
    parts = redact(uri).partition("://")[2].split("/")
    depth = 3 if parts[0] in ("datasets", "spaces", "buckets") else 2
    return "https://huggingface.co/" + "/".join(parts[:depth]).partition("@")[0]


def _value(name: str) -> str:
    """Return the value that a library reads from the environment, to show it; "" if it is unset."""
    value = os.path.expandvars(f"${name}")
    return "" if value == f"${name}" else value
