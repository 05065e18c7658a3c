"""What is remembered of walks: starts that were found, few of them, of few shards."""

import random

from shards.records import ShardInfo
from shards.tars.sample_starts import SampleStartCache, SampleStarts


def test_the_nearest_start_before_a_place_is_found():
    """A walk would begin behind the place, or at byte 0 every time."""
    starts = SampleStarts(distance=100)
    assert starts.before(10**12) == 0
    for offset in (512, 1024, 5120, 2048):
        starts.add(offset)
    assert [starts.before(o) for o in (0, 511, 512, 1500, 2048, 5000, 10**9)] == [
        0, 0, 512, 1024, 2048, 2048, 5120,
    ]  # fmt: skip


def test_starts_that_lie_close_together_are_not_kept():
    """A shard of a million samples is not a list of a million numbers."""
    starts = SampleStarts()
    for offset in range(0, 1 << 24, 512):
        starts.add(offset)
    kept = {starts.before(offset) for offset in range(0, 1 << 24, 512)}
    assert len(kept) == 64


def test_a_huge_shard_is_remembered_more_coarsely():
    """A terabyte must cost no more memory than a gigabyte."""
    starts = SampleStarts(distance=512)
    order = list(range(0, 1 << 25, 512))
    random.Random(0).shuffle(order)
    for offset in order:
        starts.add(offset)
    kept = {starts.before(offset) for offset in range(0, 1 << 25, 512)}
    assert 4000 < len(kept) <= 1 << 14 and all(start <= 1 << 25 for start in kept)


def test_a_shard_that_changed_is_another_shard():
    """The starts of the old file are inside the images of the new one."""
    walks = SampleStartCache()
    walks.of_shard(ShardInfo("a.tar", 10, "1")).add(1 << 20)
    assert walks.of_shard(ShardInfo("a.tar", 10, "1")).before(1 << 21) == 1 << 20
    assert walks.of_shard(ShardInfo("a.tar", 10, "2")).before(1 << 21) == 0


def test_only_the_shards_read_last_are_remembered():
    """A reader that meets a hundred thousand shards must not remember them all."""
    walks = SampleStartCache()
    for index in range(200):
        walks.of_shard(ShardInfo(f"{index}.tar", 10, "1")).add(1 << 20)
        walks.of_shard(ShardInfo("0.tar", 10, "1"))
    order = [0, *range(199, 0, -1)]
    shards = [ShardInfo(f"{index}.tar", 10, "1") for index in order]
    remembered = [bool(walks.of_shard(shard).before(1 << 21)) for shard in shards]
    assert remembered[:40] == [True] * 40 and remembered.count(True) < 70
