"""Which chunk, which sample, when: a pure function, random access, O(1) memory.

An epoch is one keyed permutation of all chunks. Every `chunks_per_block` of them make a block; a
second keyed permutation mixes the samples of the block. Nothing here depends on who reads, how
often, or how fast. Keys are hashes of (seed, manifest, purpose, epoch, block): sums such as
seed + epoch would make epoch 1 of seed 0 the same as epoch 0 of seed 1.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.records import Chunk, ShardInfo, Turn

# An order written down with another version is another order.
ALGORITHM = "feistel6-1"
_ROUNDS = 6


def key(*parts: object) -> NDArray[np.uint64]:
    """Six 64-bit round keys from anything that prints the same everywhere."""
    text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
    digest = blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(index: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The places that a keyed permutation of range(size) gives to `index`.

    A six-round Feistel network over the smallest even number of bits that holds `size`, walked
    again while it lands outside: fewer than four times on average.
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
    """What fixes the order besides the manifest.

    `chunk_bytes`: a power of two from 4 KiB to 1 GiB. `chunks_per_block`: the chunks whose samples
    are mixed; each comes from anywhere in the data.
    """

    seed: int
    chunk_bytes: int
    chunks_per_block: int

    def __post_init__(self) -> None:
        size = self.chunk_bytes
        if size & (size - 1) or not 4096 <= size <= 1 << 30:
            raise ConfigError(
                f"chunk_bytes={size}; it must be a power of two from 4096 to {1 << 30}: "
                "leave it out to have it worked out from the data"
            )
        if self.chunks_per_block < 1:
            raise ConfigError(
                f"chunks_per_block={self.chunks_per_block}; it must be at least 1: "
                "more chunks in a block mix better and hold more bytes"
            )


class Order:
    """The order of one manifest under one configuration. Cheap to make, holds no position."""

    def __init__(self, shards: tuple[ShardInfo, ...], manifest: str, config: OrderConfig) -> None:
        self.config = config
        self.manifest = manifest
        self._sizes = np.array([shard.num_bytes for shard in shards], dtype=np.int64)
        counts = -(-self._sizes // config.chunk_bytes)
        self._first_chunk = np.concatenate([[0], np.cumsum(counts)])
        self.num_chunks = int(self._first_chunk[-1])
        self.blocks_per_epoch = -(-self.num_chunks // config.chunks_per_block)

    @property
    def digest(self) -> str:
        """Names this order: 32 hex digits over the algorithm, the settings and the manifest."""
        fields = [ALGORITHM, self.manifest, asdict(self.config)]
        return blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()

    def chunk(self, index: int) -> Chunk:
        """Chunk number `index` in file order, 0 <= index < num_chunks."""
        shard = int(np.searchsorted(self._first_chunk, index, side="right")) - 1
        start = (index - int(self._first_chunk[shard])) * self.config.chunk_bytes
        stop = min(start + self.config.chunk_bytes, int(self._sizes[shard]))
        return Chunk(shard, start, stop)

    def block(self, block: int) -> list[Turn]:
        """The chunks of block 0, 1, 2, … without end, in canonical order.

        An epoch is a whole number of blocks, of which the last one may be short.
        """
        epoch, within = divmod(block, self.blocks_per_epoch)
        first = within * self.config.chunks_per_block
        last = min(first + self.config.chunks_per_block, self.num_chunks)
        places = np.arange(first, last, dtype=np.int64)
        keys = key(self.config.seed, self.manifest, "chunks", epoch)
        return [Turn(self.chunk(int(i)), epoch) for i in permute(places, self.num_chunks, keys)]

    def mix(self, block: int, num_samples: int) -> NDArray[np.int64]:
        """For every slot of the block, which of its samples (counted in canonical order) it is."""
        if num_samples == 0:
            return np.zeros(0, dtype=np.int64)
        keys = key(self.config.seed, self.manifest, "mix", *divmod(block, self.blocks_per_epoch))
        return permute(np.arange(num_samples, dtype=np.int64), num_samples, keys)
