"""Shards packed again: larger, smaller, mixed, or with some of the samples.

The plan assigns byte ranges of the input shards, so it reads nothing. The members of a sample are
unchanged, and so is its key, unless its new shard has that key already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from shards.pack.fetch import ImageFetcher
from shards.pack.pack_plan import (
    PackConfig,
    PackPlan,
    PlannedRows,
    SamplesRead,
    ShardTask,
    SkippedSample,
    shard_bounds,
    shuffled,
)
from shards.records import Chunk, Reject, Sample, ShardInfo
from shards.redaction import redact
from shards.samples.subset import Subset
from shards.stream.manifest import Manifest
from shards.tars.chunk_reader import read_chunk

# Number of byte ranges of an output shard, and so of places that its samples come from.
_CHUNKS_PER_SHARD: Final = 64
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 1 << 14, 1 << 23


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardsSource:
    """Input shards, or those of their samples that `subset` selects."""

    name: str
    manifest: Manifest
    subset: Subset | None = None
    class_names: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """See `PackSource.digest`."""
        return self._digest_of("")

    def _digest_of(self, layout: str) -> str:
        subset = "" if self.subset is None else self.subset.digest
        text = f"{self.manifest.digest}/{subset}{layout}{''.join(self.class_names)}"
        return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    @property
    def unit(self) -> Literal["images", "bytes"]:
        return "bytes"

    def plan(self, config: PackConfig) -> PackPlan:
        """Assign byte ranges to shards.

        The number of samples in a range is estimated from the samples that the manifest read.
        """
        wanted = int(config.samples_per_shard * self.manifest.sample_bytes)
        max_bytes = max(1, min(config.max_bytes, wanted))
        chunks = _chunks(self.manifest.shards, max_bytes)
        order = shuffled(len(chunks), config.seed)
        bounds = shard_bounds(chunks[order, 2] - chunks[order, 1], len(chunks), max_bytes)
        return ShardsPlan(self.manifest.shards, chunks[order], bounds, config.seed)


class ShardsPlan(PlannedRows):
    """Plan in which shard n holds the chunks of its rows (shard row, start, stop)."""

    def __init__(
        self,
        shards: Sequence[ShardInfo],
        chunks: NDArray[np.int64],
        bounds: NDArray[np.int64],
        seed: int | None,
    ) -> None:
        super().__init__(chunks, bounds, sum(shard.num_bytes for shard in shards))
        self._shards, self._seed = shards, seed

    def units(self, number: int) -> int:
        """See `PackPlan.units`."""
        rows = self._rows(number)
        return int((rows[:, 2] - rows[:, 1]).sum())

    def variant(self, number: int, irregular: frozenset[int]) -> str:
        """See `PackPlan.variant`. Names the input shards that are read from byte 0."""
        if not irregular:
            return ""
        walked = irregular.intersection(self._rows(number)[:, 0].tolist())
        return "".join(f" {shard}" for shard in sorted(walked))

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:
        """See `PackPlan.task`."""
        chunks = tuple(
            Chunk(shard, start, stop, walked=shard in irregular)
            for shard, start, stop in self._rows(number).tolist()
        )
        shards = {chunk.shard: self._shards[chunk.shard] for chunk in chunks}
        variant = self.variant(number, irregular)
        return ShardsTask(number, chunks, shards, self._seed, variant)


@dataclass(frozen=True, slots=True)
class ShardsTask:
    """Chunks of one shard. With a seed their samples are mixed, and all are held in memory."""

    number: int
    chunks: tuple[Chunk, ...]
    shards: Mapping[int, ShardInfo]
    seed: int | None
    variant: str

    def read(self, fetcher: ImageFetcher, subset: Subset | None) -> Iterator[SamplesRead]:
        """See `ShardTask.read`."""
        held: list[Sample] = []
        for chunk in self.chunks:
            found = _read(fetcher, self.shards[chunk.shard], chunk, subset)
            if self.seed is not None:
                held += found.samples
                found = replace(found, samples=())
            yield found
        if held:
            order = shuffled(len(held), self.seed, self.number)
            yield SamplesRead(0, samples=[held[number] for number in order])


def _read(
    fetcher: ImageFetcher, shard: ShardInfo, chunk: Chunk, subset: Subset | None
) -> SamplesRead:
    cut = read_chunk(fetcher.reader, shard, chunk, fetcher.starts)
    samples = [item for item in cut.found if isinstance(item, Sample)]
    name = redact(shard.uri)
    skipped = [
        SkippedSample(f"{name} at byte {item.offset}", item.reason)
        for item in cut.found
        if isinstance(item, Reject)
    ]
    num_found = len(samples)
    if subset is not None and samples:
        selected = subset.select(samples)
        samples = [sample for sample, is_in in zip(samples, selected, strict=True) if is_in]
    return SamplesRead(
        chunk.stop - chunk.start,
        samples,
        skipped,
        num_found - len(samples),
        (chunk.shard,) if cut.needs_walk else (),
        cut.num_hidden,
    )


def _chunks(shards: Sequence[ShardInfo], max_bytes: int) -> NDArray[np.int64]:
    """Return rows (shard, start, stop) that cover all shards, in order."""
    wanted = max_bytes // _CHUNKS_PER_SHARD
    size = int(min(max(wanted, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES))
    lengths = np.array([shard.num_bytes for shard in shards], np.int64)
    steps = np.where([shard.whole for shard in shards], lengths, size)
    counts = -(-lengths // steps)
    rows = np.repeat(np.arange(len(shards)), counts)
    starts = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * steps[rows]
    return np.stack([rows, starts, np.minimum(starts + steps[rows], lengths[rows])], axis=1)
