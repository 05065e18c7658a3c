"""Bytes of one image, from a file, an object of a store, or an address of the web.

A listed file or object must be unchanged. An image that cannot be read raises `FetchError` with a
countable reason.
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
from shards.pack.store_lookup import StoreLookup
from shards.records import ShardInfo
from shards.stores.image_download import DownloadConfig, ImageDownloader
from shards.stores.image_download import FetchError as FetchError
from shards.stores.range_reader import RangeReader
from shards.tars.sample_starts import SampleStartCache

A = TypeVar("A")
B = TypeVar("B")

# Readers of shards accept samples up to this size.
MAX_FILE_BYTES: Final = 1 << 29
# Stores that a list of images may name.
_STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")


class ImageFetcher:
    """Reads images, `config.connections` at a time. Connects on first use; must be closed."""

    def __init__(self, config: DownloadConfig, num_workers: int = 1) -> None:
        # All workers share the limit of a host.
        self._config = replace(config, per_host=max(1, config.per_host // num_workers))
        self.reader, self.starts = RangeReader(), SampleStartCache()
        self._lookup = StoreLookup(self.reader)
        self._downloader: ImageDownloader | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def in_order(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield `function(item)` in the order of the items; many calls run concurrently.

        At most two items for each connection are started ahead of the consumer.
        """
        pool = self._pool = self._pool or ThreadPoolExecutor(self._config.connections, "fetch")
        pending: deque[Future[B]] = deque()
        waiting = iter(items)
        try:
            while True:
                room = 2 * self._config.connections - len(pending)
                pending.extend(pool.submit(function, item) for item in islice(waiting, room))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def file(self, path: str, version: str) -> bytes:
        """Return a regular file whose `file_version` is `version`; "" accepts any version."""
        try:
            # A file may have been replaced by a pipe; O_NONBLOCK keeps `open` from waiting.
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
        """Return a listed object. Raises ShardUnreadable when its store does not send it."""
        if info.num_bytes > MAX_FILE_BYTES:
            raise FetchError("too_many_bytes")
        try:
            return self.reader.read(info, 0, info.num_bytes)
        except ShardChanged as error:
            raise FetchError("changed") from error

    def address(self, uri: str) -> bytes:
        """Return the image at an address that was not listed."""
        scheme = uri.partition("://")[0].lower()
        if scheme in ("http", "https"):
            with self._lock:
                self._downloader = self._downloader or ImageDownloader(self._config)
            return self._downloader.get(uri)
        if scheme not in _STORES:
            raise FetchError("bad_address")
        try:
            info = self._lookup.look_up(uri)
            if info is None:
                raise FetchError("not_found")
            if info.num_bytes > self._config.max_bytes:
                raise FetchError("too_many_bytes")
            return self.reader.read(info, 0, info.num_bytes)
        except (ManifestError, ShardUnreadable) as error:
            raise FetchError("unreadable", lost=True) from error

    def close(self) -> None:
        """Cancel all reads and close the connections."""
        if self._downloader is not None:
            self._downloader.abort()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._downloader is not None:
            self._downloader.close()

    def __enter__(self) -> "ImageFetcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def file_version(status: os.stat_result) -> str:
    """Return a version that changes when a file is written to."""
    return f"{status.st_size}-{status.st_mtime_ns}"
