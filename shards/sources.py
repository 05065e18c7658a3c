"""Where bytes come from: listing and ranged reads through fsspec, with retries and typed errors.

This is the only file that knows fsspec. Whatever a store raises leaves here as one of `errors`,
and no signed query or password leaves here at all (`redaction`).
"""

import posixpath
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
from braceexpand import braceexpand
from fsspec.asyn import sync

from shards.errors import ConfigError, ManifestError, ShardChanged, ShardUnreadable
from shards.records import ShardInfo
from shards.redaction import cause_to_show, short
from shards.redaction import redact as redact

_TAR = re.compile(r"\.tar$", re.IGNORECASE)
_GLOB = re.compile(r"[*\[]")
_S3 = ("s3", "s3a")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}
# Below this many shards a folder is not listed: asking for each is cheaper than a huge listing.
_LIST_FROM = 8
# Stores that cannot check the version with the read itself are asked for it this often at most.
_CHECK_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """How often, and after how long, a failed request is made again (seconds, full jitter)."""

    num_attempts: int = 5
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.num_attempts < 1:
            raise ConfigError(f"num_attempts={self.num_attempts}; it must be at least 1")
        if not 0 <= self.first_wait_seconds <= self.longest_wait_seconds:
            raise ConfigError(
                f"first_wait_seconds={self.first_wait_seconds}; it must be from 0 to "
                f"longest_wait_seconds={self.longest_wait_seconds}"
            )


def list_shards(pattern: str) -> list[ShardInfo]:
    """Expand a brace pattern, a glob, a folder or a single tar into shards, sorted by URI.

    Raises ManifestError when nothing matches, a named shard is missing, or access is refused.
    """
    filesystem, protocol = _filesystem(pattern)
    try:
        found = list(_list(filesystem, protocol, pattern))
    except ManifestError:
        raise
    except Exception as error:  # every store raises what its own library likes
        raise ManifestError(_explain(pattern, error)) from cause_to_show(pattern, error)
    if not found:
        raise ManifestError(
            f"no shard matches {redact(pattern)!r}; give a folder, a glob such as 'dir/*.tar', "
            "a brace pattern such as 'dir/{0000..0099}.tar', or a single .tar file"
        )
    shards = {shard.uri: shard for shard in (_shard_info(protocol, info) for info in found)}
    empty = [shard.uri for shard in shards.values() if shard.num_bytes == 0]
    if empty:
        raise ManifestError(
            f"{redact(empty[0])} holds 0 bytes ({len(empty)} such); a shard is a tar of at least "
            "one sample; remove it or leave it out of the pattern"
        )
    return [shards[uri] for uri in sorted(shards)]


class RangeReader:
    """Reads byte ranges of shards. Thread-safe; one connection pool for each protocol.

    A shard that is no longer the listed one is refused: local files are looked at before every
    read, S3 compares with the read itself, other stores are asked once in a while.
    """

    def __init__(self, retry: RetryConfig | None = None) -> None:
        self._retry = retry or RetryConfig()
        self._checked: dict[str, float] = {}

    def read(self, shard: ShardInfo, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of `shard`, all of them.

        Raises ShardChanged if the object is not the listed one, ShardUnreadable after the last
        attempt failed.
        """
        if start >= stop:
            return b""
        filesystem, protocol = _filesystem(shard.uri)
        wait = self._retry.first_wait_seconds
        for attempt in range(1, self._retry.num_attempts + 1):
            try:
                data = self._fetch(filesystem, protocol, shard, start, stop)
                if len(data) == stop - start:
                    return data
                _check_is_range(data, shard)
                error: Exception = EOFError(f"{len(data)} bytes came instead of {stop - start}")
            except ShardUnreadable:
                raise
            except FileNotFoundError as gone:
                raise ShardUnreadable(
                    f"{redact(shard.uri)} is gone; it was there when the shards were listed; "
                    "put it back, or start a new run on the shards that are left"
                ) from cause_to_show(shard.uri, gone)
            except Exception as failed:  # every store raises what its own library likes
                if _is_other_version(failed):
                    raise _changed(shard) from cause_to_show(shard.uri, failed)
                error = failed
            if attempt < self._retry.num_attempts:
                time.sleep(random.uniform(0, wait))
                wait = min(2 * wait, self._retry.longest_wait_seconds)
        raise ShardUnreadable(
            f"{redact(shard.uri)} could not be read at bytes {start}-{stop} in "
            f"{self._retry.num_attempts} attempts ({short(error)}); check the network and the "
            "store, then start the same command again: it goes on where it was"
        ) from cause_to_show(shard.uri, error)

    def _fetch(
        self, filesystem: Any, protocol: str, shard: ShardInfo, start: int, stop: int
    ) -> bytes:
        data: bytes
        if protocol in _S3:
            data = sync(filesystem.loop, _get_object, filesystem, shard, start, stop)
            return data
        now = time.monotonic()
        if protocol == "file" or now - self._checked.get(shard.uri, -_CHECK_SECONDS) >= (
            _CHECK_SECONDS
        ):
            info = _info(filesystem, shard.uri)
            if info is None:
                raise FileNotFoundError(shard.uri)
            if _version(info) != shard.version:
                raise _changed(shard)
            self._checked[shard.uri] = now
        data = filesystem.cat_file(shard.uri, start=start, end=stop)
        return data


async def _get_object(filesystem: Any, shard: ShardInfo, start: int, stop: int) -> bytes:
    """A range of an S3 object in one request, which fails if it is not the listed version."""
    bucket, key, _ = filesystem.split_path(shard.uri)
    answer = await filesystem._call_s3(
        "get_object",
        Bucket=bucket,
        Key=key,
        Range=f"bytes={start}-{stop - 1}",
        IfMatch=shard.version,
    )
    async with answer["Body"] as body:
        data: bytes = await body.read()
    return data


def _filesystem(uri: str) -> tuple[Any, str]:
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    try:
        # Without a cache of listings: the next run must see what was added since.
        return fsspec.filesystem(protocol, use_listings_cache=False), protocol
    except ValueError as error:
        raise ManifestError(
            f"{redact(uri)!r} names the store {protocol!r}, which is unknown; allowed are a local "
            "path, s3://, gs://, az://, hf://, http:// and https://"
        ) from error
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'streamssl[{extra}]'" if extra else short(error)
        raise ManifestError(
            f"{redact(uri)!r} needs a library that is not installed: {remedy}"
        ) from error


def _list(filesystem: Any, protocol: str, pattern: str) -> Iterator[dict[str, Any]]:
    try:
        names = list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError as error:
        raise ManifestError(
            f"the braces of {redact(pattern)!r} do not match; write {{0000..0099}} or {{a,b}}"
        ) from cause_to_show(pattern, error)
    plain: list[str] = []
    for name in names:
        if _GLOB.search(redact(name)) or ("?" in name and protocol == "file"):
            for info in filesystem.glob(name, detail=True).values():
                yield _with_size(filesystem, info)
        elif len(names) == 1 and _may_be_folder(protocol, name) and filesystem.isdir(name):
            for found, info in filesystem.find(name, detail=True).items():
                if _TAR.search(found):
                    yield _with_size(filesystem, info)
        else:
            plain.append(name)
    yield from _look_up(filesystem, plain)


def _may_be_folder(protocol: str, name: str) -> bool:
    # Asked whether it is a folder, a web server would send the whole shard.
    return protocol == "file" or not _TAR.search(redact(name))


def _with_size(filesystem: Any, info: dict[str, Any]) -> dict[str, Any]:
    """The pages that web servers list files on do not tell their sizes."""
    if info.get("size") is None and info.get("type") != "directory":
        return _info(filesystem, str(info["name"])) or info
    return info


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
            f"{redact(missing[0])}; every name of a pattern must be there: mend the pattern, or "
            "give a glob such as '*.tar' for those that are there"
        )


def _info(filesystem: Any, name: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = filesystem.info(name)
    except FileNotFoundError as error:
        _raise_hidden(error)
        return None
    # HTTP stores answer with the final name only in "url"; keep the one that was asked for.
    return info if info.get("type") == "directory" else info | {"name": name}


def _raise_hidden(error: FileNotFoundError) -> None:
    """The HTTP store says "not found" whatever happened: raise what is behind it, if it differs."""
    hidden = error.__cause__
    other_status = getattr(hidden, "status", 404) not in (404, 410)
    if isinstance(hidden, Exception) and (other_status or isinstance(hidden, OSError)):
        raise hidden


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
    uri = name if "://" in name or protocol == "file" else f"{protocol}://{name}"
    return ShardInfo(uri, int(info["size"]), _version(info))


def _version(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    names = ("mtime", "LastModified", "last_modified", "Last-Modified")
    changed = next((info[name] for name in names if info.get(name)), "")
    return f"{changed}-{info['size']}"


def _changed(shard: ShardInfo) -> ShardChanged:
    return ShardChanged(
        f"{redact(shard.uri)} was written to since the shards were listed; a run needs shards "
        "that stay as they are: start a new run on the new files"
    )


def _is_other_version(error: Exception) -> bool:
    """Whether S3 says that the object is not the one that was asked for."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code")) in ("PreconditionFailed", "412")


def _check_is_range(data: bytes, shard: ShardInfo) -> None:
    if len(data) == shard.num_bytes:
        raise ShardUnreadable(
            f"{redact(shard.uri)} came whole when a part was asked for; its server must answer "
            "range requests: copy the shards to a folder or a store that does"
        )


def _explain(pattern: str, error: BaseException) -> str:
    name = redact(pattern)
    refused = isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403)
    if refused or "credential" in str(error).lower():
        return (
            f"access to {name!r} was refused ({short(error)}); check the credentials in the "
            "environment and the bucket's policy"
        )
    if isinstance(error, FileNotFoundError):
        return f"{name!r} does not exist; give a folder, glob, brace pattern or .tar that does"
    return f"{name!r} could not be listed ({short(error)}); check the address and the network"
