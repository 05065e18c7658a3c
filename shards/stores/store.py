"""What every store can do: list, look up, and send a range of a shard piece by piece."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from shards.errors import ShardChanged, ShardUnreadable
from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.retry import Asker

# Where the kinds of stores keep their word for the version of an object, the best one first: on
# Google's, the etag changes with the rights to an object, the generation with its bytes alone.
_TAGS = ("generation", "ETag", "etag")
_DATES = ("mtime", "LastModified", "last_modified", "Last-Modified")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file or a folder of a store. `num_bytes` is None where the listing does not tell."""

    uri: str
    num_bytes: int | None
    version: str
    is_folder: bool = False


class Source(Protocol):
    """Where the bytes of a shard come from."""

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """Append bytes [start, stop) of `shard` to `sink`, as they arrive.

        May raise whatever its library raises; what is in `sink` by then is right, and stays.
        Raises ShardChanged when the object is not the one that was listed.
        """


class Store(Source, Protocol):
    """One bucket, one host, or the local files. Threads may share it."""

    ask: Asker

    def find(self, folder: str) -> list[Listed] | None:
        """All files below `folder`; None where it is no folder."""

    def glob(self, pattern: str) -> list[Listed]:
        """Everything that `pattern` matches."""

    def members(self, folder: str, prefix: str) -> list[Listed]:
        """What lies directly in `folder`, at least those whose names begin with `prefix`."""

    def look_up(self, uri: str) -> Listed | None:
        """The file or folder of that name; None where there is none."""

    def can_range(self, uri: str) -> bool:
        """Whether a part of a file can be had without all of it."""

    def one_pass(self, shard: ShardInfo) -> AbstractContextManager[Source]:
        """A source that is good at sending `shard` from the first byte to the last."""


def version_of(fields: Mapping[str, Any], num_bytes: int | None) -> str:
    """An etag, or what a store has like it, or "<date>-<size>"."""
    tag = next((fields[name] for name in _TAGS if fields.get(name)), None)
    if tag is not None:
        return str(tag).strip('"')
    date = next((fields[name] for name in _DATES if fields.get(name)), "")
    return f"{date}-{num_bytes}"


def changed(shard: ShardInfo) -> ShardChanged:
    """The error for an object that is not the listed one."""
    return ShardChanged(
        f"{redact(shard.uri)} was written to since the shards were listed; a run needs shards "
        "that stay as they are: start a new run on the new files"
    )


def came_whole(shard: ShardInfo) -> ShardUnreadable:
    """The error for a server that sends everything when a part was asked for."""
    return ShardUnreadable(
        f"{redact(shard.uri)} came whole when a part was asked for; its server must answer "
        "range requests: copy the shards to a folder or a store that does"
    )


def store_name(uri: str) -> str:
    """Whom a request goes to: scheme and bucket or host. One pace holds for all of it."""
    scheme, mark, rest = redact(uri).partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if mark and scheme != "file" else "file"
