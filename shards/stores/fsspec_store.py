"""Any store that fsspec knows, without knowing what is special about it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync

from shards.records import ShardInfo
from shards.stores.retry import Asker, GivenUp, RetryConfig
from shards.stores.store import Listed, Source, came_whole, changed, version_of

# A store whose bytes come slower than this is taken for one from which nothing comes.
_MIN_BYTES_PER_TIMEOUT = 1 << 20


class OtherStore:
    """Listings, sizes, versions and ranges by fsspec's own calls, each bounded in time."""

    def __init__(self, filesystem: Any, root: str, retry: RetryConfig, ask: Asker) -> None:
        self._fs, self._root, self._retry = filesystem, root, retry
        self.ask = ask

    def find(self, folder: str) -> list[Listed] | None:
        """See `Store.find`."""
        if not self.ask(lambda: self._fs.isdir(folder)):
            return None
        found = self.ask(lambda: self._fs.find(folder, detail=True))
        return [self._listed(info) for info in found.values()]

    def glob(self, pattern: str) -> list[Listed]:
        """See `Store.glob`."""
        found = self.ask(lambda: self._fs.glob(pattern, detail=True))
        return [self._listed(info) for info in found.values()]

    def members(self, folder: str, prefix: str) -> list[Listed]:  # noqa: ARG002 - lists them all
        """See `Store.members`."""
        return [self._listed(info) for info in self.ask(lambda: self._fs.ls(folder, detail=True))]

    def look_up(self, uri: str) -> Listed | None:
        """See `Store.look_up`."""
        try:
            return self._listed(self.ask(lambda: self._info(uri)))
        except GivenUp as given_up:
            if given_up.trouble.kind == "gone":
                return None
            raise

    def can_range(self, uri: str) -> bool:  # noqa: ARG002 - fsspec promises it for all of them
        """See `Store.can_range`."""
        return True

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[Source]:  # noqa: ARG002
        """See `Store.one_pass`: ranges, one behind the other, do as well."""
        yield self

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `Source.fetch`. The version is asked for behind the bytes, so it is theirs."""
        data = self._bounded("cat_file", shard.uri, stop - start, start=start, end=stop)
        if len(data) > stop - start:
            raise came_whole(shard)
        self.check_version(shard)
        sink += data

    def check_version(self, shard: ShardInfo) -> None:
        """Ask for the version that there is now. Raises ShardChanged."""
        info = self._info(shard.uri)
        if version_of(info, info.get("size")) != shard.version:
            raise changed(shard)

    def _bounded(self, call: str, uri: str, num_bytes: int, **options: Any) -> Any:
        """A call that ends in time: every megabyte may take what a read may take."""
        if not self._fs.async_impl:
            return getattr(self._fs, call)(uri, **options)
        reads = 1 + num_bytes // _MIN_BYTES_PER_TIMEOUT
        seconds = self._retry.connect_timeout_seconds + reads * self._retry.read_timeout_seconds
        return sync(self._fs.loop, getattr(self._fs, f"_{call}"), uri, timeout=seconds, **options)

    def _info(self, uri: str) -> Mapping[str, Any]:
        info: Mapping[str, Any] = self._bounded("info", uri, 0)
        return info

    def _listed(self, info: Mapping[str, Any]) -> Listed:
        name, size = str(info["name"]), info.get("size")
        # A bucket is named as it was given: for Azure, with the account.
        within = name.lstrip("/").partition("/")[2]
        uri = name if "://" in name else f"{self._root}/{within}"
        return Listed(uri, size, version_of(info, size), info.get("type") == "directory")
