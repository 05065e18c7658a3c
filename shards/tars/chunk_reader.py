"""One chunk is read: whatever kind of shard it is of, its samples come out, still encoded."""

from shards.errors import NotATar
from shards.records import Chunk, Reject, ShardInfo
from shards.stores.range_reader import RangeReader
from shards.tars.compressed import cut_whole, look_into_whole
from shards.tars.cutter import Cut, cut
from shards.tars.tar_walk import Walks


def read_chunk(
    reader: RangeReader, shard: ShardInfo, chunk: Chunk, walks: Walks | None = None
) -> Cut:
    """The samples of a chunk. A shard that is no tar is one Reject at byte 0.

    Whoever reads many chunks gives the same `walks` every time: of shards that must be walked from
    byte 0 that saves most of it, and changes nothing. Raises ShardUnreadable.
    """

    def read(start: int, stop: int) -> bytes:
        return reader.read(shard, start, stop)

    try:
        if shard.whole:
            return cut_whole(reader, shard, chunk)
        return cut(read, shard.num_bytes, chunk, starts=walks.starts(shard) if walks else None)
    except NotATar as error:
        return Cut([Reject(chunk.shard, 0, "", "broken_tar", str(error))])


def look_into(reader: RangeReader, shard: ShardInfo, num_bytes: int) -> Cut:
    """The samples in about the first `num_bytes` of a shard. Raises NotATar, ShardUnreadable."""
    if shard.whole:
        return look_into_whole(reader, shard, num_bytes)
    chunk = Chunk(0, 0, min(shard.num_bytes, num_bytes))
    return cut(lambda a, b: reader.read(shard, a, b), shard.num_bytes, chunk)
