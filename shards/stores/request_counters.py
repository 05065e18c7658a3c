"""What the transport of bytes counts: requests, bytes, retries, throttles, the cache."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Count = Literal[
    "requests",  # sent to stores, retries and listings included
    "bytes",  # that came from stores
    "throttles",  # times that a store asked for fewer requests
    "cache_hits",  # ranges that the disk cache held
    "cache_misses",  # ranges that it did not hold
    "cache_damaged",  # files of the cache that were dropped because they were not as written
    "cache_skipped",  # ranges that were not kept: too large, the lock was busy, the disk full
    "cache_evicted",  # ranges that made room for others
]


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketCounts:
    """What one bucket or host was asked for and gave; `errors` by kind, those mended included."""

    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportCounts:
    """The counts since a reader was made, at one moment. `retries`: by kind of trouble; `buckets`:
    by the name of the store (see `store_name`)."""

    requests: int = 0
    bytes: int = 0
    throttles: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_damaged: int = 0
    cache_skipped: int = 0
    cache_evicted: int = 0
    retries: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[str, BucketCounts] = field(default_factory=dict)


class Counters:
    """Counts that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}

    def add(self, name: Count, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def add_request(self, bucket: str, seconds: float, error: str = "") -> None:
        """A request to this bucket is over, and failed if there is a kind of trouble."""
        with self._lock:
            self._counts["requests"] += 1
            found = self._bucket(bucket)
            found.requests += 1
            found.seconds += seconds
            if error:
                found.errors[error] += 1

    def add_bytes(self, bucket: str, number: int) -> None:
        """So many bytes came from this bucket."""
        with self._lock:
            self._counts["bytes"] += number
            self._bucket(bucket).bytes += number

    def add_retry(self, kind: str) -> None:
        with self._lock:
            self._retries[kind] += 1

    def snapshot(self) -> TransportCounts:
        """All counts as they are now."""
        with self._lock:
            buckets = {
                name: BucketCounts(
                    requests=one.requests,
                    bytes=one.bytes,
                    seconds=one.seconds,
                    errors=dict(one.errors),
                )
                for name, one in self._buckets.items()
            }
            return TransportCounts(**self._counts, retries=dict(self._retries), buckets=buckets)

    def _bucket(self, name: str) -> "_Bucket":
        return self._buckets.setdefault(name, _Bucket())


@dataclass(slots=True)
class _Bucket:
    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
