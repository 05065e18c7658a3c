"""A reader on Ray does what the same code does in this process."""

import os
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.readers import Reader
from shards.errors import ShardUnreadable
from shards.stream import ThreadReaders
from tests.cluster.marked import MarkedShards

pytestmark = pytest.mark.ray


def test_a_reader_is_a_process_that_crops(one_ray: None, tmp_path: Path) -> None:
    """Pixels, offsets and errors are those of the same call here; two epochs differ."""
    shards = MarkedShards(tmp_path / "shards", 2, {})
    shard = shards.manifest.shards[1]
    reader = Reader.remote(shards.job())
    assert ray.get(reader.pid.remote(), timeout=50) != os.getpid()
    crops = []
    with ThreadReaders(shards.manifest, shards.job(), 1) as threads:
        for epoch in (0, 3):
            turn = shards.turn("plain1", epoch)
            theirs = ray.get(reader.crop.remote(shard, turn), timeout=50)
            ours = threads.submit(turn).result()
            assert np.array_equal(theirs.crops[0], ours.crops[0])
            assert np.array_equal(theirs.offsets, ours.offsets)
            crops.append(theirs.crops[0])
    assert not np.array_equal(*crops)
    shards.path("plain1").unlink()
    with pytest.raises(ShardUnreadable, match="is gone"):
        ray.get(reader.crop.remote(shard, shards.turn("plain1")), timeout=50)
    ray.kill(reader)
