"""Which shards, how long, which version. The digest of that list is the data's name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ManifestError, NotATar
from shards.records import Reject, ShardInfo
from shards.redaction import redact
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from shards.tars.chunk_reader import look_into
from shards.tars.headers import BLOCK, is_header

# Samples in a chunk: enough that handing it over is worth its cost, few enough to lose cheaply.
_SAMPLES_PER_CHUNK = 48
_MIN_CHUNK_BYTES = 1 << 18
_MAX_CHUNK_BYTES = 1 << 24
_NUM_PROBES = 3
_PROBE_BYTES = 1 << 20
_METADATA = b"streamssl"
_COLUMNS = ("uri", "num_bytes", "version", "source", "whole")  # as ShardInfo takes them


@dataclass(frozen=True)
class Manifest:
    """The shards of a run, sorted by source and URI.

    `sample_bytes` is how much of a shard one sample takes, headers included, as probed in a few: it
    only sizes chunks and is no part of the digest. `patterns` is what was asked for, and
    `sample_bytes_of` what a sample takes in each source.
    """

    shards: tuple[ShardInfo, ...]
    sample_bytes: float
    patterns: tuple[str, ...] = field(default=(), compare=False)
    sample_bytes_of: tuple[float, ...] = field(default=(), compare=False)

    @cached_property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """32 hex digits over source, name, length, version and kind of every shard."""
        rows = [
            [shard.source, redact(shard.uri), shard.num_bytes, shard.version, shard.whole]
            for shard in self.shards
        ]
        return blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()

    def suggest_chunk_bytes(self) -> int:
        """A power of two that holds about 48 samples: 256 KiB to 16 MiB."""
        wanted = _SAMPLES_PER_CHUNK * self.sample_bytes
        power = 1 << max(0, round(np.log2(max(wanted, 1.0))))
        return int(min(max(power, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES))

    def samples_per_chunk(self, chunk_bytes: int) -> float:
        """About how many samples a chunk holds; shards that are read whole are one chunk each."""
        num = sum(1 if s.whole else -(-s.num_bytes // chunk_bytes) for s in self.shards)
        return self.num_bytes / num / self.sample_bytes

    def sample_shares(self, chunk_bytes: int, weights: Sequence[float]) -> list[float]:
        """About which shares of the samples sources have whose shares of the chunks these are."""
        amounts = []
        for source, weight in enumerate(weights):
            shards = tuple(shard for shard in self.shards if shard.source == source)
            alone = Manifest(shards, self.sample_bytes_of[source])
            amounts.append(float(weight) * alone.samples_per_chunk(chunk_bytes))
        return [amount / sum(amounts) for amount in amounts]

    def suggest_chunks_per_block(self, chunk_bytes: int, batch_size: int) -> int:
        """So many chunks that their samples fill about four batches, and at least eight chunks."""
        samples_per_chunk = max(1.0, self.samples_per_chunk(chunk_bytes))
        return max(8, int(np.ceil(4 * batch_size / samples_per_chunk)))

    def write(self, path: Path) -> None:
        """Save as Parquet: columns source, uri (redacted), num_bytes, version, whole."""
        uris = [redact(shard.uri) for shard in self.shards]
        table = pa.table(
            {
                "source": pa.array([shard.source for shard in self.shards], pa.int32()),
                "uri": uris,
                "num_bytes": pa.array([shard.num_bytes for shard in self.shards], pa.int64()),
                "version": [shard.version for shard in self.shards],
                "whole": pa.array([shard.whole for shard in self.shards], pa.bool_()),
            }
        )
        fields = {
            "digest": self.digest,
            "sample_bytes": self.sample_bytes,
            "patterns": [redact(pattern) for pattern in self.patterns],
            "redacted": any(uri != s.uri for uri, s in zip(uris, self.shards, strict=True)),
        }
        pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(fields)}), path)


def read_manifest(path: Path) -> Manifest:
    """The manifest that `write` saved. Raises ManifestError.

    Where addresses were signed, what was saved of them opens nothing: list the shards again.
    """
    try:
        table = pq.read_table(path)
        fields = json.loads((table.schema.metadata or {})[_METADATA])
        rows = zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)
        shards = tuple(ShardInfo(*row) for row in rows)
        manifest = Manifest(shards, fields["sample_bytes"], tuple(fields["patterns"]))
        redacted, digest = fields["redacted"], fields["digest"]
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise ManifestError(
            f"{path} cannot be read as a manifest ({error}); give the folder of a run of this "
            "version, or name the shards with --data"
        ) from error
    if redacted or manifest.digest != digest:
        raise ManifestError(
            f"{path} lists shards without the signatures of their addresses, which are never "
            f"saved; name them again: --data {' '.join(manifest.patterns) or 'PATTERN'}"
        )
    return manifest


def open_manifest(
    patterns: str | Sequence[str], reader: RangeReader, *, separate: bool = False
) -> Manifest:
    """List the shards of all `patterns` and look into a few of them.

    The patterns are one source together, or with `separate` each is a source of its own. Raises
    ManifestError when one matches nothing, or when a shard that was looked into is not a tar of
    samples; ShardUnreadable when it cannot be read.
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
    return Manifest(
        shards, float(np.mean([s for probed in sizes for s in probed])), patterns, means
    )


def _sample_bytes(shards: Sequence[ShardInfo], reader: RangeReader) -> list[float]:
    """The mean bytes of a sample in a few shards of a source."""
    places = sorted({0, len(shards) // 2, len(shards) - 1})[:_NUM_PROBES]
    sizes = [_probe(shards[place], reader) for place in places]
    known = [size for size in sizes if size is not None]
    if not known:
        raise ManifestError(
            f"no sample was found at the start of {redact(shards[0].uri)}; a shard holds members "
            "such as 000017.jpg and 000017.cls: check it with `streamssl shards verify`"
        )
    return known


def _probe(shard: ShardInfo, reader: RangeReader) -> float | None:
    """The mean bytes of a sample at the start of a shard; None where there is none."""
    try:
        found = look_into(reader, shard, _PROBE_BYTES).found
    except NotATar as error:
        raise ManifestError(f"{redact(shard.uri)} is not a tar: {error}") from error
    samples = [sample for sample in found if not isinstance(sample, Reject)]
    for sample in (sample for sample in samples if len(sample.fields) == 1):
        for extension, data in sample.fields.items():
            if data[257:262] == b"ustar" and is_header(data[:BLOCK]):
                raise ManifestError(
                    f"{redact(shard.uri)} holds a tar inside the tar ({sample.key}.{extension}); a "
                    "shard holds the images themselves: extract it and give the inner tars"
                )
    return min(shard.num_bytes, _PROBE_BYTES) / len(samples) if samples else None
