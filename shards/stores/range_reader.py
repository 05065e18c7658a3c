"""Where bytes come from: ranged reads of shards, exact or refused, whatever the store does.

A request that fails is made again, a body that breaks is resumed where it broke, and every answer
is held against the listed length and version. Whatever a store raises leaves here as one of
`errors`, and no signed query or password leaves here at all (`redaction`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shards.errors import ShardUnreadable
from shards.records import ShardInfo
from shards.redaction import cause_to_show, redact, short
from shards.stores.disk_cache import CacheConfig, DiskCache
from shards.stores.request_counters import TransportCounts
from shards.stores.retry import GivenUp, RetryConfig
from shards.stores.store import Source, changed, store_name
from shards.stores.store_clients import Stores

# Pieces of a pass over a whole shard: what is asked for at once, and what is kept in the cache.
_PIECE_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """How shards are read: patience, and what is kept on disk. Small, and travels by pickle."""

    retry: RetryConfig = field(default_factory=RetryConfig)
    cache: CacheConfig | None = None


class RangeReader:
    """Reads shards. Threads should share one; a forked process may go on using it.

    A shard that is no longer the listed one is refused with the read itself.
    """

    def __init__(self, config: SourceConfig | None = None) -> None:
        self.config = config or SourceConfig()
        self.stores = Stores(self.config.retry)
        self._cache = DiskCache(self.config.cache) if self.config.cache else None

    def __reduce__(self) -> tuple[type["RangeReader"], tuple[SourceConfig]]:
        """Travels by its settings: connections stay where they are."""
        return RangeReader, (self.config,)

    @property
    def counters(self) -> TransportCounts:
        """What was sent, received, retried and kept so far, by this process."""
        return self.stores.counters.snapshot()

    def read(self, shard: ShardInfo, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of `shard`, all of them.

        Raises ShardChanged if the object is not the listed one, ShardUnreadable if it is gone, may
        not be read, or the last attempt failed.
        """
        return self._read(self.stores.open(shard.uri), shard, start, stop)

    def read_whole(self, shard: ShardInfo) -> Iterator[bytes]:
        """All bytes of `shard` from the first to the last, in pieces of up to 8 MiB.

        Works with servers that know no ranges. Raises what `read` raises.
        """
        with self.stores.open(shard.uri).one_pass(shard) as source:
            for start in range(0, shard.num_bytes, _PIECE_BYTES):
                stop = min(start + _PIECE_BYTES, shard.num_bytes)
                yield self._read(source, shard, start, stop)

    def can_range(self, shard: ShardInfo) -> bool:
        """Whether a part of `shard` can be had without all of it.

        A web server is asked for one byte, once for every folder. Raises ShardUnreadable.
        """
        try:
            return self.stores.open(shard.uri).can_range(shard.uri)
        except GivenUp as given_up:
            raise _unreadable(shard, 0, 1, given_up) from cause_to_show(shard.uri, given_up.error)

    def _read(self, source: Source, shard: ShardInfo, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        # Files of this machine are on a disk already.
        cache = self._cache if store_name(shard.uri) != "file" else None
        counters = self.stores.counters
        kept = cache.get(shard, start, stop, counters) if cache else None
        if kept is not None:
            return kept
        data = self._fetch(source, shard, start, stop)
        if cache:
            cache.put(shard, start, data, counters)
        return data

    def _fetch(self, source: Source, shard: ShardInfo, start: int, stop: int) -> bytes:
        sink = bytearray()

        def rest() -> None:
            source.fetch(shard, start + len(sink), stop, sink)
            if len(sink) < stop - start:
                raise EOFError(f"{len(sink)} bytes came instead of {stop - start}")

        try:
            self.stores.open(shard.uri).ask(rest, lambda: len(sink))
        except GivenUp as given_up:
            if given_up.trouble.kind == "changed":
                error: ShardUnreadable = changed(shard)
            else:
                error = _unreadable(shard, start, stop, given_up)
            raise error from cause_to_show(shard.uri, given_up.error)
        finally:
            self.stores.counters.add_bytes(store_name(shard.uri), len(sink))
        assert len(sink) == stop - start, "a store appended more than it was asked for"
        return bytes(sink)


def _unreadable(shard: ShardInfo, start: int, stop: int, given_up: GivenUp) -> ShardUnreadable:
    name, kind = redact(shard.uri), given_up.trouble.kind
    reason = short(given_up.error, shard.uri)
    if kind == "gone":
        return ShardUnreadable(
            f"{name} is gone; it was there when the shards were listed; put it back, or start a "
            "new run on the shards that are left"
        )
    if kind == "refused":
        return ShardUnreadable(
            f"access to {name} was refused ({reason}); it was listed before, so the credentials "
            "may have run out: renew them, then start the same command again: it goes on where "
            "it was"
        )
    times = f"{given_up.num_attempts} attempt{'s' if given_up.num_attempts > 1 else ''}"
    return ShardUnreadable(
        f"{name} could not be read at bytes {start}-{stop} in {times} ({reason}); check the "
        "network and the store, then start the same command again: it goes on where it was"
    )
