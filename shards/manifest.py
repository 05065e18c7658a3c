"""Which shards, how long, which version. The digest of that list is the data's name."""

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ManifestError, NotATar
from shards.records import Chunk, Reject, ShardInfo
from shards.redaction import redact
from shards.sources import RangeReader, list_shards
from shards.tar import cut
from shards.tar_headers import BLOCK, is_header

# Samples in a chunk: enough that handing it over is worth its cost, few enough to lose cheaply.
_SAMPLES_PER_CHUNK = 48
_LEAST_CHUNK_BYTES = 1 << 18
_MOST_CHUNK_BYTES = 1 << 24
_NUM_PROBES = 3
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """The shards of a run, sorted by URI.

    `sample_bytes` is how much of a tar one sample takes, headers included, as probed in a few
    shards: it only sizes chunks and is no part of the digest.
    """

    shards: tuple[ShardInfo, ...]
    sample_bytes: float

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """32 hex digits over name, length and version of every shard."""
        digest = blake2b(digest_size=16)
        for shard in self.shards:
            row = [redact(shard.uri), shard.num_bytes, shard.version]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def suggest_chunk_bytes(self) -> int:
        """A power of two that holds about 48 samples: 256 KiB to 16 MiB."""
        wanted = _SAMPLES_PER_CHUNK * self.sample_bytes
        power = 1 << max(0, round(np.log2(max(wanted, 1.0))))
        return int(min(max(power, _LEAST_CHUNK_BYTES), _MOST_CHUNK_BYTES))

    def suggest_chunks_per_block(self, chunk_bytes: int, batch_size: int) -> int:
        """So many chunks that their samples fill about four batches, and at least eight chunks."""
        samples_per_chunk = max(1.0, chunk_bytes / self.sample_bytes)
        return max(8, int(np.ceil(4 * batch_size / samples_per_chunk)))

    def write(self, path: Path) -> None:
        """Save as Parquet: columns uri (redacted), num_bytes, version."""
        table = pa.table(
            {
                "uri": [redact(shard.uri) for shard in self.shards],
                "num_bytes": pa.array([shard.num_bytes for shard in self.shards], pa.int64()),
                "version": [shard.version for shard in self.shards],
            }
        )
        pq.write_table(table, path)


def open_manifest(pattern: str, reader: RangeReader) -> Manifest:
    """List the shards of `pattern` and look into a few of them.

    Raises ManifestError when nothing matches, or when a shard that was looked into is not a tar of
    samples; ShardUnreadable when it cannot be read.
    """
    shards = tuple(list_shards(pattern))
    places = sorted({0, len(shards) // 2, len(shards) - 1})[:_NUM_PROBES]
    sizes = [_probe(shards[place], reader) for place in places]
    known = [size for size in sizes if size is not None]
    if not known:
        raise ManifestError(
            f"no sample was found at the start of {redact(shards[0].uri)}; a shard holds members "
            "such as 000017.jpg and 000017.cls: check it with `streamssl shards verify`"
        )
    return Manifest(shards, float(np.mean(known)))


def _probe(shard: ShardInfo, reader: RangeReader) -> float | None:
    """The mean bytes of a sample at the start of a shard; None where there is none."""
    chunk = Chunk(0, 0, min(shard.num_bytes, _PROBE_BYTES))
    try:
        found = cut(lambda a, b: reader.read(shard, a, b), shard.num_bytes, chunk).found
    except NotATar as error:
        raise ManifestError(f"{redact(shard.uri)} is not a tar: {error}") from error
    samples = [sample for sample in found if not isinstance(sample, Reject)]
    for sample in samples:
        for extension, data in sample.fields.items():
            if data[257:262] == b"ustar" and is_header(data[:BLOCK]):
                raise ManifestError(
                    f"{redact(shard.uri)} holds a tar inside the tar ({sample.key}.{extension}); a "
                    "shard holds the pictures themselves: extract it and give the inner tars"
                )
    return chunk.stop / len(samples) if samples else None
