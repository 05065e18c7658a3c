"""From shard patterns to a manifest: list the shards, and probe a few of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shards.errors import ManifestError, NotATar
from shards.records import Reject, ShardInfo
from shards.redaction import redact
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from shards.stream.manifest import Manifest
from shards.tars.chunk_reader import read_shard_head
from shards.tars.headers import BLOCK, is_header

_NUM_PROBES = 3
_PROBE_BYTES = 1 << 20


def open_manifest(
    patterns: str | Sequence[str], reader: RangeReader, *, separate: bool = False
) -> Manifest:
    """List the shards of all `patterns`, and probe a few of them.

    The patterns form one source, or with `separate` one source each. Raises ManifestError if a
    pattern matches nothing or a probed shard is not a tar of samples, and ShardUnreadable if it
    cannot be read.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    listed = [list_shards(pattern, reader.stores) for pattern in patterns]
    if separate:
        sources = [
            [replace(shard, source=number) for shard in found]
            for number, found in enumerate(listed)
        ]
    else:
        by_uri = {shard.uri: shard for found in listed for shard in found}
        sources = [[by_uri[uri] for uri in sorted(by_uri)]]
    shards = tuple(shard for found in sources for shard in found)
    sizes = [_sample_bytes(found, reader) for found in sources]
    means = tuple(float(np.mean(probed)) for probed in sizes)
    sample_bytes = float(np.mean([size for probed in sizes for size in probed]))
    return Manifest(shards, sample_bytes, patterns, means)


def _sample_bytes(shards: Sequence[ShardInfo], reader: RangeReader) -> list[float]:
    """Return the mean sample size in each of a few shards of a source."""
    rows = sorted({0, len(shards) // 2, len(shards) - 1})[:_NUM_PROBES]
    sizes = [_probe(shards[row], reader) for row in rows]
    known = [size for size in sizes if size is not None]
    if not known:
        raise ManifestError(
            f"no sample was found at the start of {redact(shards[0].uri)}; a shard holds members "
            "such as 000017.jpg and 000017.cls: check it with `streamssl shards verify`"
        )
    return known


def _probe(shard: ShardInfo, reader: RangeReader) -> float | None:
    """Return the mean sample size at the start of a shard, or None if there is no sample."""
    try:
        found = read_shard_head(reader, shard, _PROBE_BYTES).found
    except NotATar as error:
        raise ManifestError(f"{redact(shard.uri)} is not a tar: {error}") from error
    samples = [sample for sample in found if not isinstance(sample, Reject)]
    for sample in (sample for sample in samples if len(sample.fields) == 1):
        for extension, data in sample.fields.items():
            if data[257:262] == b"ustar" and is_header(data[:BLOCK]):
                raise ManifestError(
                    f"{redact(shard.uri)} holds a tar inside the tar ({sample.key}.{extension}); a "
                    "shard must hold the images themselves: extract it and give the inner tars"
                )
    return min(shard.num_bytes, _PROBE_BYTES) / len(samples) if samples else None
