"""Contract of a store: list, look up, fetch a range; and the checks of what a store sent."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from shards.errors import ShardChanged, ShardUnreadable
from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.failures.error_kinds import UnexpectedResponse
from shards.stores.retry import RetryingClient

# Fields that hold the version of an object, the best one first: on Google's stores the etag changes
# with the access rights of an object, the generation only with its bytes.
_TAGS = ("generation", "ETag", "etag")
_DATES = ("mtime", "LastModified", "last_modified", "Last-Modified")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """File or folder of a store. `num_bytes` is None if the listing does not contain it."""

    uri: str
    num_bytes: int | None
    version: str
    is_folder: bool = False


class RangeSource(Protocol):
    """Source of the bytes of shards."""

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """Append bytes [start, stop) of `shard` to `sink`, as they arrive.

        May raise any error of its library; the bytes in `sink` are correct even then. Raises
        ShardChanged when the object is not the listed one.
        """


class Store(RangeSource, Protocol):
    """One bucket, one host, or the local files. Threads may share it."""

    client: RetryingClient
    filesystem: Any
    """The client of fsspec; a new one may take its place at any moment."""

    def find(self, folder: str) -> list[ListedFile] | None:
        """Return all files below `folder`; None if it is not a folder."""

    def glob(self, pattern: str) -> list[ListedFile]:
        """Return the files and folders that match `pattern`."""

    def list_folder(self, folder: str, prefix: str) -> list[ListedFile]:
        """Return the direct members of `folder`, at least those that begin with `prefix`."""

    def look_up(self, uri: str) -> ListedFile | None:
        """Return the file or folder of that name, if there is one."""

    def can_range(self, uri: str) -> bool:
        """Return True if the store can send a part of a file."""

    def one_pass(self, shard: ShardInfo) -> AbstractContextManager[RangeSource]:
        """Open a source that is efficient for reading `shard` from the first byte to the last."""


def version_of(fields: Mapping[str, Any], num_bytes: int | None) -> str:
    """Return the etag or its equivalent; "<date>-<size>" for a store without etags."""
    tag = next((fields[name] for name in _TAGS if fields.get(name)), None)
    if tag is not None:
        return str(tag).strip('"')
    date = next((fields[name] for name in _DATES if fields.get(name)), "")
    return f"{date}-{num_bytes}"


def changed_error(shard: ShardInfo) -> ShardChanged:
    """Return the error for an object that is not the listed one."""
    return ShardChanged(
        f"{redact(shard.uri)} was written to since the shards were listed; a run needs shards "
        "that stay as they are: start a new run on the new files"
    )


def whole_shard_error(shard: ShardInfo) -> ShardUnreadable:
    """Return the error for a server that sends the whole shard for a range request."""
    return ShardUnreadable(
        f"{redact(shard.uri)} was sent whole for a range request; its server must support range "
        "requests: copy the shards to a folder or a store that does"
    )


def store_name(uri: str) -> str:
    """Return scheme and bucket or host of an address: the unit that has one request limit."""
    scheme, mark, rest = redact(uri).partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if mark and scheme != "file" else "file"


def check_content_range(header: str | None, shard: ShardInfo, start: int) -> None:
    """Raise unless the answer begins at `start` of an object of the listed length.

    An answer without the header holds the whole object, which is correct if `start` is 0. An
    answer may end early.
    """
    if header is None:
        if start > 0:
            raise UnexpectedResponse("the whole shard was sent for a range request")
        return
    found = _CONTENT_RANGE.fullmatch(header.strip())
    if found is None or int(found[1]) != start:
        raise UnexpectedResponse(f"{header.strip()[:60]!r} was sent for a range from byte {start}")
    if found[3] not in ("*", str(shard.num_bytes)):
        raise changed_error(shard)


def has_tag(shard: ShardInfo) -> bool:
    """Return True if the version of a web server's shard is an etag; dates contain blanks."""
    return " " not in shard.version and shard.version != f"-{shard.num_bytes}"


def is_same_version(headers: Mapping[str, str], shard: ShardInfo) -> bool:
    """Return True if the headers of an answer do not contradict the listed version.

    Servers do not send the same headers with each answer, so a missing header proves nothing.
    """
    tag, date = headers.get("ETag", "").strip('"'), headers.get("Last-Modified")
    if has_tag(shard):
        return not tag or tag == shard.version
    return not date or shard.version in (f"{date}-{shard.num_bytes}", f"-{shard.num_bytes}")
