"""Cache of sample starts: the right start, few per shard, of few shards."""

import random

from shards.records import ShardInfo
from shards.tars.sample_starts import SampleStartCache, SampleStarts


def test_nearest_start_before_an_offset_is_found():
    """A walk would begin after the offset, or at byte 0 every time."""
    starts = SampleStarts(distance=100)
    assert starts.before(10**12) == 0
    for offset in (512, 1024, 5120, 2048):
        starts.add(offset)
    assert [starts.before(o) for o in (0, 511, 512, 1500, 2048, 5000, 10**9)] == [
        0, 0, 512, 1024, 2048, 2048, 5120,
    ]  # fmt: skip


def test_close_starts_are_not_kept():
    """A shard of a million samples would need a list of a million numbers."""
    starts = SampleStarts()
    for offset in range(0, 1 << 24, 512):
        starts.add(offset)
    kept = {starts.before(offset) for offset in range(0, 1 << 24, 512)}
    assert len(kept) == 64


def test_huge_shard_keeps_a_bounded_number_of_starts():
    """A shard of a terabyte would need a thousand times the memory of one gigabyte."""
    starts = SampleStarts(distance=512)
    order = list(range(0, 1 << 25, 512))
    random.Random(0).shuffle(order)
    for offset in order:
        starts.add(offset)
    kept = {starts.before(offset) for offset in range(0, 1 << 25, 512)}
    assert 4000 < len(kept) <= 1 << 14 and all(start <= 1 << 25 for start in kept)


def test_changed_shard_has_no_known_starts():
    """Starts of the old file would be offsets inside images of the new one."""
    cache = SampleStartCache()
    cache.of_shard(ShardInfo("a.tar", 10, "1")).add(1 << 20)
    assert cache.of_shard(ShardInfo("a.tar", 10, "1")).before(1 << 21) == 1 << 20
    assert cache.of_shard(ShardInfo("a.tar", 10, "2")).before(1 << 21) == 0


def test_only_the_latest_shards_are_cached():
    """The memory of a reader would grow with the number of shards."""
    cache = SampleStartCache()
    for index in range(200):
        cache.of_shard(ShardInfo(f"{index}.tar", 10, "1")).add(1 << 20)
        cache.of_shard(ShardInfo("0.tar", 10, "1"))
    order = [0, *range(199, 0, -1)]
    shards = [ShardInfo(f"{index}.tar", 10, "1") for index in order]
    cached = [bool(cache.of_shard(shard).before(1 << 21)) for shard in shards]
    assert cached[:40] == [True] * 40 and cached.count(True) < 70
