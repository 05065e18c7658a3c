"""Store for each protocol that fsspec knows and that needs no special treatment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync

from shards.records import ShardInfo
from shards.stores.retry import RetriesExhausted, RetryConfig, RetryingClient
from shards.stores.store import (
    ListedFile,
    RangeSource,
    changed_error,
    version_of,
    whole_shard_error,
)

# A store that sends fewer bytes in each read timeout counts as a store that sends none.
_MIN_BYTES_PER_TIMEOUT = 1 << 20


class FsspecStore:
    """Listings, sizes, versions and ranges by fsspec's own calls, each with a timeout."""

    def __init__(
        self, filesystem: Any, root: str, retry: RetryConfig, client: RetryingClient
    ) -> None:
        self.filesystem, self._root, self._retry = filesystem, root, retry
        self.client = client

    def find(self, folder: str) -> list[ListedFile] | None:
        """See `Store.find`."""
        if not self._is_folder(folder):
            return None
        found = self.client.call(lambda: self.filesystem.find(folder, detail=True))
        return [self._listed(info) for info in found.values()]

    def _is_folder(self, name: str) -> bool:
        """Return True for a folder. `isdir` alone says no if the store does not answer."""
        try:
            info = self.client.call(lambda: self.filesystem.info(name))
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind != "gone":
                raise
            return bool(self.client.call(lambda: self.filesystem.isdir(name)))
        return bool(info["type"] == "directory")

    def glob(self, pattern: str) -> list[ListedFile]:
        """See `Store.glob`."""
        found = self.client.call(lambda: self.filesystem.glob(pattern, detail=True))
        return [self._listed(info) for info in found.values()]

    def list_folder(self, folder: str, prefix: str) -> list[ListedFile]:  # noqa: ARG002
        """See `Store.list_folder`. fsspec cannot filter by prefix, so all members are listed."""
        found = self.client.call(lambda: self.filesystem.ls(folder, detail=True))
        return [self._listed(info) for info in found]

    def look_up(self, uri: str) -> ListedFile | None:
        """See `Store.look_up`."""
        try:
            return self._listed(self.client.call(lambda: self._info(uri)))
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind == "gone":
                return None
            raise

    def can_range(self, uri: str) -> bool:  # noqa: ARG002
        """See `Store.can_range`. fsspec promises ranges for all protocols."""
        return True

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[RangeSource]:  # noqa: ARG002
        """See `Store.one_pass`. Consecutive ranges are efficient enough."""
        yield self

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `RangeSource.fetch`. Requests the version after the bytes, so it covers them."""
        data = self._bounded("cat_file", shard.uri, stop - start, start=start, end=stop)
        if len(data) > stop - start:
            raise whole_shard_error(shard)
        self.check_version(shard)
        sink += data

    def check_version(self, shard: ShardInfo) -> None:
        """Request the current version. Raises ShardChanged."""
        info = self._info(shard.uri)
        if version_of(info, info.get("size")) != shard.version:
            raise changed_error(shard)

    def _bounded(self, call: str, uri: str, num_bytes: int, **options: Any) -> Any:
        """Call fsspec with one read timeout for each megabyte."""
        if not self.filesystem.async_impl:
            return getattr(self.filesystem, call)(uri, **options)
        reads = 1 + num_bytes // _MIN_BYTES_PER_TIMEOUT
        seconds = self._retry.connect_timeout_seconds + reads * self._retry.read_timeout_seconds
        return sync(
            self.filesystem.loop,
            getattr(self.filesystem, f"_{call}"),
            uri,
            timeout=seconds,
            **options,
        )

    def _info(self, uri: str) -> Mapping[str, Any]:
        info: Mapping[str, Any] = self._bounded("info", uri, 0)
        return info

    def _listed(self, info: Mapping[str, Any]) -> ListedFile:
        name, size = str(info["name"]), info.get("size")
        # Keep the bucket as the user wrote it: for Azure, with the account.
        within = name.lstrip("/").partition("/")[2]
        uri = name if "://" in name else f"{self._root}/{within}"
        return ListedFile(uri, size, version_of(info, size), info.get("type") == "directory")
