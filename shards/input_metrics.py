"""Metrics of the data plane: buckets, the disk cache, samples and rejects."""

from typing import Final, get_args

from shards.metric import Key, Metric, MetricGroup, Readings, charted
from shards.records import Reason
from shards.stores.failures.error_kinds import ErrorKind
from shards.stores.request_counters import TransportCounts

_input = MetricGroup("input")

INPUT_METRICS: Final[tuple[Metric, ...]] = charted((
    _input.counter("bucket_bytes", "Bytes received from a bucket.",
                   "Its rate is the network load of the run; compare it with the node's limit.",
                   bucket=()),
    _input.counter("bucket_requests", "Requests to a bucket, retries included.",
                   "Many requests for few bytes: chunks are small, see --stream.chunk-bytes.",
                   bucket=()),
    _input.counter("bucket_request_seconds", "Seconds that requests to a bucket took.",
                   "Divided by the requests: the mean latency. It rises when a bucket is the "
                   "limit.",
                   bucket=()),
    _input.counter("bucket_errors", "Requests to a bucket that failed, by kind of error.",
                   "Each was retried; `throttled` means that the bucket asks for fewer requests.",
                   bucket=(), kind=get_args(ErrorKind)),
    _input.counter("cache_ranges", "Byte ranges looked up in the disk cache of --cache.",
                   "Hits divided by both is the share that was not requested from the bucket.",
                   kind=("hit", "miss")),
    _input.counter("cache_dropped_ranges",
                   "Byte ranges that the disk cache removed or did not keep, by reason.",
                   "`evicted` made room for others, `skipped` were too large or the disk was full "
                   "or busy, `damaged` were not as written: check the disk.",
                   reason=("evicted", "skipped", "damaged")),
    _input.counter("samples", "Samples that passed a stage.",
                   "`read` is all, `unselected` left out by a list, `cropped` kept, `trained` "
                   "used in a step.",
                   stage=("read", "unselected", "cropped", "trained")),
    _input.counter("rejects", "Rejected samples by reason, in the order of the stream.",
                   "Divided by read samples: the share of bad data. A new reason is a new kind of "
                   "data.",
                   reason=get_args(Reason)),
    _input.counter("crop_bytes", "Bytes of crops that readers produced.",
                   "Its rate is the traffic from readers to trainers."),
), "bucket_bytes bucket_errors samples rejects")  # fmt: skip


def store_readings(counts: TransportCounts) -> Readings:
    """Return the counters of buckets and cache since the process started.

    A bucket is named without scheme and path.
    """
    found: dict[Key, float] = {}
    for store, one in counts.buckets.items():
        bucket = store.partition("://")[2] or store
        found["bucket_requests", bucket] = one.requests
        found["bucket_bytes", bucket] = one.bytes
        found["bucket_request_seconds", bucket] = one.seconds
        for kind in get_args(ErrorKind):
            found["bucket_errors", bucket, kind] = one.errors.get(kind, 0)
    found["cache_ranges", "hit"] = counts.cache_hits
    found["cache_ranges", "miss"] = counts.cache_misses
    found["cache_dropped_ranges", "evicted"] = counts.cache_evicted
    found["cache_dropped_ranges", "skipped"] = counts.cache_skipped
    found["cache_dropped_ranges", "damaged"] = counts.cache_damaged
    return found
