"""Reads of byte ranges of shards: exact, or refused with an error of this project.

A failed request is retried, a broken body is resumed at the byte where it broke, and each answer is
compared with the listed length and version. Errors of client libraries are converted to those of
`errors`, without signed queries or passwords (`redaction`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shards.errors import ShardUnreadable
from shards.records import ShardInfo
from shards.redaction import cause_to_show, redact, short
from shards.stores.disk_cache import CacheConfig, DiskCache
from shards.stores.failures.remedies import lost_access
from shards.stores.request_counters import TransportCounts
from shards.stores.retry import RetriesExhausted, RetryConfig
from shards.stores.store import RangeSource, changed_error, store_name
from shards.stores.store_clients import Stores

# Size of one request, and of one cache entry, in a pass over a whole shard.
_PIECE_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Settings of reads: retries and the disk cache."""

    retry: RetryConfig = field(default_factory=RetryConfig)
    cache: CacheConfig | None = None


class RangeReader:
    """Reads shards. Threads should share one; it works in a forked process too.

    Each read checks that the shard is still the listed one.
    """

    def __init__(self, config: SourceConfig | None = None) -> None:
        self.config = config or SourceConfig()
        self.stores = Stores(self.config.retry)
        self._cache = DiskCache(self.config.cache) if self.config.cache else None

    def __reduce__(self) -> tuple[type["RangeReader"], tuple[SourceConfig]]:
        """Pickle the settings only: connections belong to one process."""
        return RangeReader, (self.config,)

    @property
    def counters(self) -> TransportCounts:
        """Counts of requests, bytes, retries and cache entries of this process."""
        return self.stores.counters.snapshot()

    def read(self, shard: ShardInfo, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of `shard`.

        Raises ShardChanged if the object is not the listed one, ShardUnreadable if it is gone, if
        access is denied, or if the last attempt failed.
        """
        return self._read(self.stores.open(shard.uri), shard, start, stop)

    def read_whole(self, shard: ShardInfo) -> Iterator[bytes]:
        """Yield all bytes of `shard` in order, in pieces of up to 8 MiB.

        Works with servers without range requests. Raises as `read` does.
        """
        with self.stores.open(shard.uri).one_pass(shard) as source:
            for start in range(0, shard.num_bytes, _PIECE_BYTES):
                stop = min(start + _PIECE_BYTES, shard.num_bytes)
                yield self._read(source, shard, start, stop)

    def can_range(self, shard: ShardInfo) -> bool:
        """Return True if the store can send a part of `shard`.

        Sends a web server one request for each folder. Raises ShardUnreadable.
        """
        try:
            return self.stores.open(shard.uri).can_range(shard.uri)
        except RetriesExhausted as exhausted:
            raise _unreadable(shard, 0, 1, exhausted) from cause_to_show(shard.uri, exhausted.error)

    def _read(self, source: RangeSource, shard: ShardInfo, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        # Local files are on a disk already.
        cache = self._cache if store_name(shard.uri) != "file" else None
        counters = self.stores.counters
        cached = cache.get(shard, start, stop, counters) if cache else None
        if cached is not None:
            return cached
        data = self._fetch(source, shard, start, stop)
        if cache:
            cache.put(shard, start, data, counters)
        return data

    def _fetch(self, source: RangeSource, shard: ShardInfo, start: int, stop: int) -> bytes:
        sink = bytearray()

        def fetch_rest() -> None:
            source.fetch(shard, start + len(sink), stop, sink)
            if len(sink) < stop - start:
                raise EOFError(f"{len(sink)} bytes were sent instead of {stop - start}")

        try:
            self.stores.open(shard.uri).client.call(fetch_rest, lambda: len(sink))
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind == "changed":
                error: ShardUnreadable = changed_error(shard)
            else:
                error = _unreadable(shard, start, stop, exhausted)
            raise error from cause_to_show(shard.uri, exhausted.error)
        finally:
            self.stores.counters.add_bytes(store_name(shard.uri), len(sink))
        assert len(sink) == stop - start, "a store appended more than the requested bytes"
        return bytes(sink)


def _unreadable(
    shard: ShardInfo, start: int, stop: int, exhausted: RetriesExhausted
) -> ShardUnreadable:
    name, kind = redact(shard.uri), exhausted.failure.kind
    reason = short(exhausted.error, shard.uri)
    if kind == "gone":
        return ShardUnreadable(
            f"{name} is gone; it was there when the shards were listed; put it back, or start a "
            "new run on the shards that are left"
        )
    again = "then start the same command again: it goes on where it was"
    if kind in ("refused", "certificate"):
        return ShardUnreadable(lost_access(shard.uri, exhausted.failure, exhausted.error, again))
    times = f"{exhausted.num_attempts} attempt{'s' if exhausted.num_attempts > 1 else ''}"
    return ShardUnreadable(
        f"{name} could not be read at bytes {start}-{stop} in {times} ({reason}); check the "
        f"network and the store, {again}"
    )
