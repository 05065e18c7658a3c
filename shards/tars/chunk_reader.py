"""Reads the encoded samples of one chunk, from any kind of shard."""

from shards.errors import NotATar
from shards.records import Chunk, Reject, ShardInfo
from shards.stores.range_reader import RangeReader
from shards.tars.compressed import cut_whole, cut_whole_head
from shards.tars.cutter import CutChunk, cut_chunk
from shards.tars.sample_starts import SampleStartCache


def read_chunk(
    reader: RangeReader, shard: ShardInfo, chunk: Chunk, starts: SampleStartCache | None = None
) -> CutChunk:
    """Return the samples of a chunk. A shard that is no tar is one Reject at byte 0.

    Pass the same `starts` for many chunks: it shortens walks from byte 0 and does not change the
    result. Raises ShardUnreadable.
    """

    def read(start: int, stop: int) -> bytes:
        return reader.read(shard, start, stop)

    try:
        if shard.whole:
            return cut_whole(reader, shard, chunk)
        known = starts.of_shard(shard) if starts else None
        return cut_chunk(read, shard.num_bytes, chunk, starts=known, names=shard.names)
    except NotATar as error:
        return CutChunk([Reject(chunk.shard, 0, "", "broken_tar", str(error))])


def read_shard_head(reader: RangeReader, shard: ShardInfo, num_bytes: int) -> CutChunk:
    """Return the samples in about the first `num_bytes` of a shard.

    Raises NotATar, ShardUnreadable.
    """
    if shard.whole:
        return cut_whole_head(reader, shard, num_bytes)
    chunk = Chunk(0, 0, min(shard.num_bytes, num_bytes))
    return cut_chunk(
        lambda a, b: reader.read(shard, a, b), shard.num_bytes, chunk, names=shard.names
    )
