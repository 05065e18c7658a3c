"""What `shards` counted of buckets and of the disk cache, as readings by key."""

from typing import get_args

from cluster.protocol.metric import Key, Readings
from shards.stores.request_counters import TransportCounts
from shards.stores.retry import Kind


def transport_readings(counts: TransportCounts) -> Readings:
    """Counters since the process started; a bucket goes by its name, without scheme or path."""
    found: dict[Key, float] = {}
    for store, one in counts.buckets.items():
        bucket = store.partition("://")[2] or store
        found["bucket_requests", bucket] = one.requests
        found["bucket_bytes", bucket] = one.bytes
        found["bucket_request_seconds", bucket] = one.seconds
        for kind in get_args(Kind):
            found["bucket_errors", bucket, kind] = one.errors.get(kind, 0)
    found["cache_ranges", "hit"] = counts.cache_hits
    found["cache_ranges", "miss"] = counts.cache_misses
    return found
