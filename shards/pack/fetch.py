"""One image from wherever it lies: a file, an object of a store, an address of the web.

A file or an object that was listed must still be what was listed. What cannot be had is a
`FetchError` with a reason that can be counted.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Final, TypeVar

from shards.errors import ManifestError, ShardChanged, ShardUnreadable
from shards.pack.store_lookup import Lookups
from shards.records import ShardInfo
from shards.stores.image_download import FetchError as FetchError
from shards.stores.image_download import Web, WebConfig
from shards.stores.range_reader import RangeReader
from shards.tars.tar_walk import Walks

A = TypeVar("A")
B = TypeVar("B")

# As much as a reader of shards takes for one sample.
MAX_FILE_BYTES: Final = 1 << 29
# What a row of somebody's list may name besides a path.
_STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")


class Fetcher:
    """Gets images, `config.connections` at a time. To be closed; connects only when asked to."""

    def __init__(self, config: WebConfig, num_workers: int = 1) -> None:
        # What one host may be asked at once is shared by all workers.
        self._config = replace(config, per_host=max(1, config.per_host // num_workers))
        self.reader, self.walks = RangeReader(), Walks()
        self._lookups = Lookups(self.reader)
        self._web: Web | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def in_order(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """`function` of every item, in order, many at a time, not far ahead of who asks."""
        pool = self._pool = self._pool or ThreadPoolExecutor(self._config.connections, "fetch")
        under_way: deque[Future[B]] = deque()
        waiting = iter(items)
        try:
            while True:
                room = 2 * self._config.connections - len(under_way)
                under_way.extend(pool.submit(function, item) for item in islice(waiting, room))
                if not under_way:
                    return
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def file(self, path: str, version: str) -> bytes:
        """A file whose `file_version` was `version`; any that is regular where that is empty."""
        try:
            # Whoever put a pipe in the place of the file must not hold us up.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise FetchError("unreadable")
                if version and file_version(status) != version:
                    raise FetchError("changed")
                if status.st_size > MAX_FILE_BYTES:
                    raise FetchError("too_many_bytes")
                return file.read()
        except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
            raise FetchError("unreadable") from error

    def listed(self, info: ShardInfo) -> bytes:
        """A listed object. Raises ShardUnreadable when its store does not give it."""
        if info.num_bytes > MAX_FILE_BYTES:
            raise FetchError("too_many_bytes")
        try:
            return self.reader.read(info, 0, info.num_bytes)
        except ShardChanged as error:
            raise FetchError("changed") from error

    def address(self, uri: str) -> bytes:
        """What lies at an address that nobody has looked at yet."""
        scheme = uri.partition("://")[0].lower()
        if scheme in ("http", "https"):
            with self._lock:
                self._web = self._web or Web(self._config)
            return self._web.get(uri)
        if scheme not in _STORES:
            raise FetchError("bad_address")
        try:
            info = self._lookups.look_up(uri)
            if info is None:
                raise FetchError("not_found")
            if info.num_bytes > self._config.max_bytes:
                raise FetchError("too_many_bytes")
            return self.reader.read(info, 0, info.num_bytes)
        except (ManifestError, ShardUnreadable) as error:
            raise FetchError("unreadable", lost=True) from error

    def close(self) -> None:
        """Drop whatever is under way."""
        if self._web is not None:
            self._web.abort()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._web is not None:
            self._web.close()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def file_version(status: os.stat_result) -> str:
    """Differs when a file was written to."""
    return f"{status.st_size}-{status.st_mtime_ns}"
