"""Files of this machine. A link counts as the file that it leads to."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shards.records import ShardInfo
from shards.stores.retry import Asker, GivenUp
from shards.stores.store import Listed, Source, changed, version_of


class LocalStore:
    """The version of a file is looked at through the same open file that is read."""

    def __init__(self, filesystem: Any, ask: Asker) -> None:
        self._fs = filesystem
        self.ask = ask

    def find(self, folder: str) -> list[Listed] | None:
        """See `Store.find`."""
        path = self._path(folder)
        if not os.path.isdir(path):
            return None
        return self.ask(lambda: list(_walk(path)))

    def glob(self, pattern: str) -> list[Listed]:
        """See `Store.glob`."""
        return self.ask(lambda: [_listed(path) for path in self._fs.glob(self._path(pattern))])

    def members(self, folder: str, prefix: str) -> list[Listed]:
        """See `Store.members`."""
        path = self._path(folder)

        def list_them() -> list[Listed]:
            names = (name for name in os.listdir(path) if name.startswith(prefix))
            return [_listed(f"{path}/{name}") for name in names]

        return self.ask(list_them)

    def look_up(self, uri: str) -> Listed | None:
        """See `Store.look_up`."""
        path = self._path(uri)
        try:
            return self.ask(lambda: _stated(path))
        except GivenUp as given_up:
            if given_up.trouble.kind == "gone":
                return None
            raise

    def can_range(self, uri: str) -> bool:  # noqa: ARG002 - files can
        """See `Store.can_range`."""
        return True

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[Source]:  # noqa: ARG002
        """See `Store.one_pass`."""
        yield self

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `Source.fetch`."""
        with open(self._path(shard.uri), "rb") as file:
            if _version(os.fstat(file.fileno())) != shard.version:
                raise changed(shard)
            file.seek(start)
            sink += file.read(stop - start)

    def _path(self, uri: str) -> str:
        """An absolute path: without file://, with the home directory in place of ~."""
        path: str = self._fs._strip_protocol(uri)
        return path


def _walk(folder: str) -> Iterator[Listed]:
    for root, _, names in os.walk(folder, onerror=_raise):
        yield from (_listed(f"{root}/{name}") for name in names)


def _listed(path: str) -> Listed:
    try:
        return _stated(path)
    except FileNotFoundError:  # a link to nothing, or deleted since: named as empty
        return Listed(path, 0, "")


def _stated(path: str) -> Listed:
    status = os.stat(path)
    return Listed(path, status.st_size, _version(status), stat.S_ISDIR(status.st_mode))


def _version(status: os.stat_result) -> str:
    return version_of({"mtime": status.st_mtime}, status.st_size)


def _raise(error: OSError) -> None:
    """A folder that may not be looked into is no empty folder."""
    raise error
