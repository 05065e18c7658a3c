"""Files of this machine. A symbolic link counts as the file that it points to."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shards.records import ShardInfo
from shards.stores.retry import RetriesExhausted, RetryingClient
from shards.stores.store import ListedFile, RangeSource, changed_error, version_of


class LocalStore:
    """Local files; the version is read from the open file that is read."""

    def __init__(self, filesystem: Any, client: RetryingClient) -> None:
        self.filesystem = filesystem
        self.client = client

    def find(self, folder: str) -> list[ListedFile] | None:
        """See `Store.find`."""
        path = self._path(folder)
        if not os.path.isdir(path):
            return None
        return self.client.call(lambda: list(_walk(path)))

    def glob(self, pattern: str) -> list[ListedFile]:
        """See `Store.glob`."""
        path = self._path(pattern)
        return self.client.call(lambda: [_listed(found) for found in self.filesystem.glob(path)])

    def list_folder(self, folder: str, prefix: str) -> list[ListedFile]:
        """See `Store.list_folder`."""
        path = self._path(folder)

        def list_names() -> list[ListedFile]:
            names = (name for name in os.listdir(path) if name.startswith(prefix))
            return [_listed(f"{path}/{name}") for name in names]

        return self.client.call(list_names)

    def look_up(self, uri: str) -> ListedFile | None:
        """See `Store.look_up`."""
        path = self._path(uri)
        try:
            return self.client.call(lambda: _stat(path))
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind == "gone":
                return None
            raise

    def can_range(self, uri: str) -> bool:  # noqa: ARG002
        """See `Store.can_range`."""
        return True

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[RangeSource]:  # noqa: ARG002
        """See `Store.one_pass`."""
        yield self

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `RangeSource.fetch`."""
        with open(self._path(shard.uri), "rb") as file:
            if _version(os.fstat(file.fileno())) != shard.version:
                raise changed_error(shard)
            file.seek(start)
            sink += file.read(stop - start)

    def _path(self, uri: str) -> str:
        """Return an absolute path, without file:// and with ~ expanded."""
        path: str = self.filesystem._strip_protocol(uri)
        return path


def _walk(folder: str) -> Iterator[ListedFile]:
    for root, _, names in os.walk(folder, onerror=_raise):
        yield from (_listed(f"{root}/{name}") for name in names)


def _listed(path: str) -> ListedFile:
    try:
        return _stat(path)
    except FileNotFoundError:  # a dangling link or a deleted file is reported as empty
        return ListedFile(path, 0, "")


def _stat(path: str) -> ListedFile:
    status = os.stat(path)
    return ListedFile(path, status.st_size, _version(status), stat.S_ISDIR(status.st_mode))


def _version(status: os.stat_result) -> str:
    return version_of({"mtime": status.st_mtime}, status.st_size)


def _raise(error: OSError) -> None:
    """Raise: os.walk would otherwise report an unreadable folder as empty."""
    raise error
