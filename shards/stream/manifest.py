"""Manifest: the shards of a run, their lengths and versions. Its digest is the name of the data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np

from shards.records import ShardInfo
from shards.redaction import redact

# Samples in a chunk: enough to make the transfer worthwhile, few enough to lose cheaply.
_SAMPLES_PER_CHUNK = 48
_MIN_CHUNK_BYTES = 1 << 18
_MAX_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Manifest:
    """The shards of a run, sorted by source and URI.

    `sample_bytes` is the mean size of a sample in its tar, headers included, estimated from a few
    shards; it only sizes chunks and is not part of the digest. `patterns` are the names that the
    user gave; `sample_bytes_of` is `sample_bytes` for each source. `empty` names listed shards of 0
    bytes, which are left out; `unfinished` those that a downloader may still write.
    """

    shards: tuple[ShardInfo, ...]
    sample_bytes: float
    patterns: tuple[str, ...] = field(default=(), compare=False)
    sample_bytes_of: tuple[float, ...] = field(default=(), compare=False)
    empty: tuple[str, ...] = field(default=(), compare=False)
    unfinished: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """32 hex digits over source, name, length, version, kind and name rule of every shard."""
        rows = [_identity(shard) for shard in self.shards]
        return blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()

    def suggest_chunk_bytes(self) -> int:
        """Return a power of two that holds about 48 samples: 256 KiB to 16 MiB."""
        wanted = _SAMPLES_PER_CHUNK * self.sample_bytes
        power = 1 << max(0, round(np.log2(max(wanted, 1.0))))
        return int(min(max(power, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES))

    def samples_per_chunk(self, chunk_bytes: int) -> float:
        """Estimate the samples in a chunk; a shard that is read whole is one chunk."""
        num = sum(1 if s.whole else -(-s.num_bytes // chunk_bytes) for s in self.shards)
        return self.num_bytes / num / self.sample_bytes

    def sample_shares(self, chunk_bytes: int, weights: Sequence[float]) -> list[float]:
        """Estimate the share of the samples of each source from its share of the chunks."""
        amounts = []
        for source, weight in enumerate(weights):
            shards = tuple(shard for shard in self.shards if shard.source == source)
            alone = Manifest(shards, self.sample_bytes_of[source])
            amounts.append(float(weight) * alone.samples_per_chunk(chunk_bytes))
        return [amount / sum(amounts) for amount in amounts]

    def suggest_chunks_per_block(self, chunk_bytes: int, batch_size: int) -> int:
        """Return the number of chunks that fill about four batches, at least eight."""
        samples_per_chunk = max(1.0, self.samples_per_chunk(chunk_bytes))
        return max(8, int(np.ceil(4 * batch_size / samples_per_chunk)))


def _identity(shard: ShardInfo) -> list[object]:
    row = [shard.source, redact(shard.uri), shard.num_bytes, shard.version, shard.whole]
    # The first rule is not named, so that the digest of most data is that of older versions.
    return row if shard.names.keys == "first_dot" else [*row, shard.names.keys]
