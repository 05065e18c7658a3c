"""ChunkCropper: crops are a pure function of bytes, chunk and epoch; bad samples are rejects."""

import pickle

import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.recipe import cifar
from shards.records import Chunk, Turn
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from tests.noise import noise
from tests.shards.jobs import crop_job
from tests.tars import make_tar

RECIPE = cifar(counts=(2, 1), sizes=(16, 8), scales=((0.2, 1.0), (0.05, 0.2)))
JOB = crop_job(RECIPE, 3)


@pytest.fixture
def shard(tmp_path):
    """A shard of twelve samples; numbers 2, 5 and 7 are bad."""
    images = [noise(24, 24, seed=seed) for seed in range(12)]
    images[2], images[5], images[7] = b"junk", noise(4, 4), noise(24, 24)[:-40]
    members = [(f"{i:03d}.png", data) for i, data in enumerate(images)]
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    return list_shards(str(tmp_path / "0.tar"))[0]


def whole(shard):
    return Chunk(0, 0, shard.num_bytes)


def test_every_sample_is_a_row_or_a_reject(shard):
    """A sample would disappear."""
    found = ChunkCropper(JOB, RangeReader()).crop(shard, Turn(whole(shard), 0))
    assert found.kept.tolist() == [i not in (2, 5, 7) for i in range(12)]
    assert [group.shape for group in found.crops] == [(9, 2, 16, 16, 3), (9, 1, 8, 8, 3)]
    assert [(reject.key, reject.reason, reject.member) for reject in found.rejects] == [
        ("002", "not_an_image", "002.png"),
        ("005", "too_small", "005.png"),
        ("007", "truncated", "007.png"),
    ]
    assert [reject.offset for reject in found.rejects] == found.offsets[~found.kept].tolist()
    assert found.num_bytes == 9 * RECIPE.num_bytes == sum(g.nbytes for g in found.crops)
    assert found.read_seconds >= 0 and found.crop_seconds > 0


def test_crops_depend_only_on_sample_and_epoch(shard):
    """Another reader, or other chunks, would give other crops."""
    together = ChunkCropper(JOB, RangeReader()).crop(shard, Turn(whole(shard), 4))
    other = ChunkCropper(pickle.loads(pickle.dumps(JOB)), RangeReader())
    parts = [
        other.crop(shard, Turn(Chunk(0, start, min(start + 4096, shard.num_bytes)), 4))
        for start in reversed(range(0, shard.num_bytes, 4096))
    ][::-1]
    for group in range(2):
        joined = np.concatenate([part.crops[group] for part in parts])
        assert np.array_equal(joined, together.crops[group])
    assert np.array_equal(np.concatenate([part.offsets for part in parts]), together.offsets)
    later = other.crop(shard, Turn(whole(shard), 5))
    assert np.array_equal(later.offsets, together.offsets)
    assert not np.array_equal(later.crops[0], together.crops[0])


def test_a_chunk_without_samples_has_empty_arrays(shard):
    """A chunk inside a large image would crash."""
    found = ChunkCropper(JOB, RangeReader()).crop(shard, Turn(Chunk(0, 512, 1024), 0))
    assert found.offsets.shape == found.kept.shape == (0,) and found.rejects == ()
    assert [group.shape for group in found.crops] == [(0, 2, 16, 16, 3), (0, 1, 8, 8, 3)]
