"""Sample order: a pure function with random access and O(1) memory.

An epoch of a source is a keyed permutation of its chunks. With several sources, a schedule assigns
chunk slots to sources (see `mixture`). Each `chunks_per_block` chunks form a block, and a second
keyed permutation mixes the samples of the block. The order does not depend on the number or speed
of readers. Keys are hashes of (seed, manifest, purpose, …); with sums such as seed + epoch, epoch 1
of seed 0 would equal epoch 0 of seed 1.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.records import Chunk, ShardInfo, Turn
from shards.stream.mixture import Mixture, Weights

# Part of the digest: a cursor of another version of the algorithm is refused.
ALGORITHM = "feistel6-2"
_ROUNDS = 6


def key(*parts: object) -> NDArray[np.uint64]:
    """Return six 64-bit round keys from the JSON text of `parts`."""
    text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
    digest = blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(index: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Apply a keyed permutation of range(size) to `index`.

    It is a six-round Feistel network over the smallest even number of bits that holds `size`,
    repeated while the result is outside: fewer than four times on average.
    """
    bits = max(2, (size - 1).bit_length())
    half = np.uint64((bits + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    place = index.astype(np.uint64)
    outside = np.ones(place.shape, dtype=bool)
    while outside.any():
        place[outside] = _feistel(place[outside], half, mask, keys)
        outside = place >= np.uint64(size)
    return place.astype(np.int64)


def _feistel(
    place: NDArray[np.uint64], half: np.uint64, mask: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = place >> half, place & mask
    for round_key in keys:
        mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        left, right = right, left ^ (mixed & mask)
    return (left << half) | right


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig:
    """Settings that determine the order, together with the manifest.

    `chunk_bytes` is a power of two from 4 KiB to 1 GiB. `chunks_per_block` chunks from anywhere in
    the data are mixed with each other. `subset` is the digest of a subset list, empty without one.
    """

    seed: int
    chunk_bytes: int
    chunks_per_block: int
    subset: str = ""

    def __post_init__(self) -> None:
        size = self.chunk_bytes
        if size & (size - 1) or not 4096 <= size <= 1 << 30:
            raise ConfigError(
                f"chunk_bytes={size}; it must be a power of two from 4096 to {1 << 30}: "
                "leave it out to compute it from the data"
            )
        if self.chunks_per_block < 1:
            raise ConfigError(
                f"chunks_per_block={self.chunks_per_block}; it must be at least 1: "
                "more chunks in a block mix better and hold more bytes"
            )


class Order:
    """The order of one manifest under one configuration. Cheap to create, without a position.

    `weights` are pairs (first block, weights of the sources). They are not part of the digest, so a
    run can change them.
    """

    def __init__(
        self,
        shards: tuple[ShardInfo, ...],
        manifest: str,
        config: OrderConfig,
        weights: Sequence[tuple[int, Weights]] = (),
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.shards = shards
        self._sizes = np.array([shard.num_bytes for shard in shards], dtype=np.int64)
        whole = np.array([shard.whole for shard in shards], dtype=bool)
        counts = np.where(whole, 1, -(-self._sizes // config.chunk_bytes))
        self._first_chunk = np.concatenate([[0], np.cumsum(counts)])
        self.num_chunks = int(self._first_chunk[-1])
        self._whole = whole
        self._sources = np.array([shard.source for shard in shards], dtype=np.int64)
        self.num_sources = int(self._sources[-1]) + 1
        rows = np.searchsorted(self._sources, np.arange(self.num_sources + 1))
        # Source k has the chunks source_starts[k] to source_starts[k + 1] - 1 in file order.
        self._source_starts = [int(first) for first in self._first_chunk[rows]]
        slots = [(block * config.chunks_per_block, shares) for block, shares in weights]
        self._mixture = Mixture(slots) if self.num_sources > 1 and slots else None

    def reweighted(self, weights: Sequence[tuple[int, Weights]]) -> "Order":
        """Return the same order with other weights."""
        return Order(self.shards, self.manifest, self.config, weights)

    @cached_property
    def digest(self) -> str:
        """32 hex digits over the algorithm, the settings and the manifest."""
        fields = [ALGORITHM, self.manifest, asdict(self.config)]
        return blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks of an epoch of a single source."""
        return -(-self.num_chunks // self.config.chunks_per_block)

    def source(self, shard: int) -> int:
        """Return the source of a row of the manifest."""
        return int(self._sources[shard])

    def num_chunks_of(self, source: int) -> int:
        """Return the number of chunks in an epoch of a source."""
        return self._source_starts[source + 1] - self._source_starts[source]

    def chunk(self, index: int) -> Chunk:
        """Return chunk number `index` in file order, 0 <= index < num_chunks."""
        shard = int(np.searchsorted(self._first_chunk, index, side="right")) - 1
        size = int(self._sizes[shard])
        if self._whole[shard]:
            return Chunk(shard, 0, size)
        start = (index - int(self._first_chunk[shard])) * self.config.chunk_bytes
        return Chunk(shard, start, min(start + self.config.chunk_bytes, size))

    def block(self, block: int) -> list[Turn]:
        """Return the turns of block 0, 1, 2, …, without end, in canonical order.

        An epoch of a single source is a whole number of blocks; its last block may be short. With
        several sources every block is full, and each source has its own epochs.
        """
        length = self.config.chunks_per_block
        if self.num_sources == 1:
            epoch, within = divmod(block, self.blocks_per_epoch)
            last = min((within + 1) * length, self.num_chunks)
            numbers = epoch * self.num_chunks + np.arange(within * length, last, dtype=np.int64)
            return self._turns(np.zeros_like(numbers), numbers)
        assert self._mixture is not None, "several sources need weights"
        return self._turns(*self._mixture.at(block * length, (block + 1) * length))

    def _turns(self, sources: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[Turn]:
        """Return the turn of each pair (source, chunk number counted through all epochs)."""
        sizes = np.diff(self._source_starts)[sources]
        epochs, places = np.divmod(numbers, sizes)
        indices = np.empty_like(places)
        for source, epoch in sorted(set(zip(sources.tolist(), epochs.tolist(), strict=True))):
            mine = (sources == source) & (epochs == epoch)
            keys = key(self.config.seed, self.manifest, "chunks", source, epoch)
            permuted = permute(places[mine], self.num_chunks_of(source), keys)
            indices[mine] = self._source_starts[source] + permuted
        return [
            Turn(self.chunk(index), epoch)
            for index, epoch in zip(indices.tolist(), epochs.tolist(), strict=True)
        ]

    def mix(self, block: int, num_samples: int) -> NDArray[np.int64]:
        """Return the sample of every slot of a block, counted in canonical order."""
        if num_samples == 0:
            return np.zeros(0, dtype=np.int64)
        keys = key(self.config.seed, self.manifest, "mix", block)
        return permute(np.arange(num_samples, dtype=np.int64), num_samples, keys)


def deal(batch_size: int, rank: int, world: int) -> slice:
    """Return the rows of a global batch for rank `rank` of `world`.

    Raises ConfigError if `batch_size` is not divisible by `world`.
    """
    assert 0 <= rank < world
    if batch_size % world:
        fitting = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
        near = sorted(sorted(fitting, key=lambda number: abs(number - world))[:6])
        raise ConfigError(
            f"batch_size={batch_size} over {world} ranks; every rank must get equally many rows: "
            f"start {', '.join(map(str, near))} ranks, or give another --stream.batch-size"
        )
    share = batch_size // world
    return slice(rank * share, (rank + 1) * share)
