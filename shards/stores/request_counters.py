"""Counters of the byte transport: requests, bytes, retries, throttled requests, the disk cache."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

CounterName = Literal[
    "requests",  # sent to stores, retries and listings included
    "bytes",  # received from stores
    "throttles",  # answers that asked for fewer requests
    "cache_hits",  # ranges that the disk cache held
    "cache_misses",  # ranges that the disk cache did not hold
    "cache_damaged",  # cache files that were dropped because their checksum was wrong
    "cache_skipped",  # ranges that were not cached: too large, the lock was busy, the disk full
    "cache_evicted",  # ranges that were removed to make room
]


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketCounts:
    """Requests and bytes of one bucket or host; `errors` by kind, retried ones included."""

    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportCounts:
    """Snapshot of all counters of a reader. `retries` by error kind, `buckets` by `store_name`."""

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


class RequestCounters:
    """Counters that many threads increase."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._buckets: dict[str, _BucketCounters] = {}

    def add(self, name: CounterName, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def add_request(self, bucket: str, seconds: float, error: str = "") -> None:
        """Count a finished request; `error` is the kind of its failure, if it failed."""
        with self._lock:
            self._counts["requests"] += 1
            found = self._bucket(bucket)
            found.requests += 1
            found.seconds += seconds
            if error:
                found.errors[error] += 1

    def add_bytes(self, bucket: str, number: int) -> None:
        with self._lock:
            self._counts["bytes"] += number
            self._bucket(bucket).bytes += number

    def add_retry(self, kind: str) -> None:
        with self._lock:
            self._retries[kind] += 1

    def snapshot(self) -> TransportCounts:
        """Return all counters as they are now."""
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

    def _bucket(self, name: str) -> "_BucketCounters":
        return self._buckets.setdefault(name, _BucketCounters())


@dataclass(slots=True)
class _BucketCounters:
    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
