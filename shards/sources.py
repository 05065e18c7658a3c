"""Where bytes come from: listing and ranged reads through fsspec, with retries and typed errors.

This is the only file that knows fsspec. Whatever a store raises leaves here as one of `errors`,
and no signed query or password leaves here at all (`redact`).
"""

import posixpath
import random
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import fsspec
from braceexpand import UnbalancedBracesError, braceexpand

from shards.errors import ManifestError, ShardChanged, ShardUnreadable
from shards.records import ShardInfo

try:  # What object stores raise besides OSError; each library is an optional extra.
    from aiohttp import ClientError as _HttpError
except ImportError:  # pragma: no cover
    _HttpError = ConnectionError  # type: ignore[assignment, misc]
try:
    from botocore.exceptions import BotoCoreError as _S3Error
except ImportError:
    _S3Error = ConnectionError

_STORE_ERRORS = (OSError, EOFError, _HttpError, _S3Error)
_TAR = re.compile(r"\.tar$", re.IGNORECASE)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}
# Below this many shards a folder is not listed: asking for each is cheaper than a huge listing.
_LIST_FROM = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """How often, and after how long, a failed request is made again (seconds, full jitter)."""

    num_attempts: int = 5
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0


def redact(uri: str) -> str:
    """`uri` without user, password, query and fragment: safe to print, log and save."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def list_shards(pattern: str) -> list[ShardInfo]:
    """Expand a brace pattern, a glob, a folder or a single tar into shards, sorted by URI.

    Raises ManifestError when nothing matches, a named shard is missing, or access is refused.
    """
    filesystem, protocol = _filesystem(pattern)
    try:
        found = list(_list(filesystem, pattern))
    except _STORE_ERRORS as error:
        raise ManifestError(_explain(pattern, error)) from error
    if not found:
        raise ManifestError(
            f"no shard matches {redact(pattern)!r}; give a folder, a glob such as 'dir/*.tar', "
            "a brace pattern such as 'dir/{0000..0099}.tar', or a single .tar file"
        )
    shards = [_shard_info(protocol, info) for info in found]
    empty = [shard.uri for shard in shards if shard.num_bytes == 0]
    if empty:
        raise ManifestError(
            f"{redact(empty[0])} holds 0 bytes ({len(empty)} such); a shard is a tar of at least "
            "one sample; remove it or leave it out of the pattern"
        )
    return sorted(shards, key=lambda shard: shard.uri)


class RangeReader:
    """Reads byte ranges of shards. Thread-safe; one connection pool for each protocol."""

    def __init__(self, retry: RetryConfig | None = None) -> None:
        self._retry = retry or RetryConfig()

    def read(self, shard: ShardInfo, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of `shard`, all of them.

        Raises ShardChanged if the object is not the listed one, ShardUnreadable after the last
        attempt failed.
        """
        filesystem, protocol = _filesystem(shard.uri)
        wait = self._retry.first_wait_seconds
        for attempt in range(1, self._retry.num_attempts + 1):
            try:
                if protocol == "file":
                    _check_unchanged(filesystem.info(shard.uri), shard)
                data: bytes = filesystem.cat_file(shard.uri, start=start, end=stop)
                if len(data) == stop - start:
                    return data
                error: BaseException = EOFError(
                    f"{len(data)} bytes came instead of {stop - start}"
                )
            except FileNotFoundError as gone:
                raise ShardUnreadable(
                    f"{redact(shard.uri)} is gone; it was there when the shards were listed; "
                    "start the run again with a pattern that does not name it"
                ) from gone
            except _STORE_ERRORS as failed:
                error = failed
            if attempt < self._retry.num_attempts:
                time.sleep(random.uniform(0, wait))
                wait = min(2 * wait, self._retry.longest_wait_seconds)
        raise ShardUnreadable(
            f"{redact(shard.uri)} could not be read at bytes {start}-{stop} in "
            f"{self._retry.num_attempts} attempts: {_short(error)}"
        ) from error


def _filesystem(uri: str) -> tuple[Any, str]:
    protocol = urlsplit(uri).scheme if "://" in uri else "file"
    try:
        return fsspec.filesystem(protocol or "file"), protocol or "file"
    except ValueError as error:
        raise ManifestError(
            f"{redact(uri)!r} names the store {protocol!r}, which is unknown; allowed are a local "
            "path, s3://, gs://, az://, hf://, http:// and https://"
        ) from error
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'streamssl[{extra}]'" if extra else _short(error)
        raise ManifestError(
            f"{redact(uri)!r} needs a library that is not installed: {remedy}"
        ) from error


def _list(filesystem: Any, pattern: str) -> Iterator[dict[str, Any]]:
    if "{" in pattern:
        try:
            names = list(braceexpand(pattern))
        except UnbalancedBracesError as error:
            raise ManifestError(
                f"the braces of {redact(pattern)!r} do not match; write {{0000..0099}} or {{a,b}}"
            ) from error
        yield from _look_up(filesystem, names)
    elif any(mark in pattern for mark in "*[") or ("?" in pattern and "://" not in pattern):
        yield from filesystem.glob(pattern, detail=True).values()
    elif filesystem.isdir(pattern):
        for name, info in filesystem.find(pattern, detail=True).items():
            if _TAR.search(name):
                yield info
    else:
        yield from _look_up(filesystem, [pattern])


def _look_up(filesystem: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    """The listing of every name; one listing a folder where there are many of them."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(posixpath.dirname(name), []).append(name)
    missing: list[str] = []
    for folder, members in folders.items():
        listed: dict[str, dict[str, Any]] = {}
        if len(members) >= _LIST_FROM and not folder.startswith("http"):
            listed = {posixpath.basename(i["name"]): i for i in filesystem.ls(folder, detail=True)}
        for name in members:
            info = listed.get(posixpath.basename(name))
            if info is None and not listed:
                info = _info(filesystem, name)
            if info is None:
                missing.append(name)
            else:
                yield info
    if missing:
        raise ManifestError(
            f"{len(missing)} of {len(names)} shards do not exist, the first is "
            f"{redact(missing[0])}; every name of a pattern must be there: mend the pattern"
        )


def _info(filesystem: Any, name: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = filesystem.info(name)
    except FileNotFoundError:
        return None
    # HTTP stores answer with the final name only in "url"; keep the one that was asked for.
    return info | {"name": name}


def _shard_info(protocol: str, info: dict[str, Any]) -> ShardInfo:
    name = str(info["name"])
    if info.get("type") == "directory":
        raise ManifestError(
            f"{redact(name)} is a folder; a shard is a .tar file: give the folder itself, "
            "or a pattern of its files"
        )
    if info.get("size") is None:
        raise ManifestError(
            f"{redact(name)} has no known length; the server must answer with Content-Length: "
            "copy the shard to a store that does"
        )
    uri = name if protocol == "file" or "://" in name else f"{protocol}://{name}"
    return ShardInfo(uri, int(info["size"]), _version(info))


def _version(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    changed = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    return f"{changed}-{info['size']}"


def _check_unchanged(info: dict[str, Any], shard: ShardInfo) -> None:
    if _version(info) != shard.version:
        raise ShardChanged(
            f"{redact(shard.uri)} was written to since the shards were listed; a run needs shards "
            "that stay as they are: start a new run on the new files"
        )


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\?\S+", "?…", text)[:200]


def _explain(pattern: str, error: BaseException) -> str:
    name = redact(pattern)
    if isinstance(error, PermissionError) or "credential" in str(error).lower():
        return (
            f"access to {name!r} was refused ({_short(error)}); check the credentials in the "
            "environment and the bucket's policy"
        )
    if isinstance(error, FileNotFoundError):
        return f"{name!r} does not exist; give a folder, glob, brace pattern or .tar that does"
    return f"{name!r} could not be listed ({_short(error)}); check the address and the network"


def protocols(uris: Iterable[str]) -> set[str]:
    """The stores that `uris` lie in, such as {'s3', 'file'}: a bounded label for metrics."""
    return {urlsplit(uri).scheme or "file" for uri in uris}
