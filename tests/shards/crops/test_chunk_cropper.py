"""ChunkCropper: crops are a pure function of bytes, chunk and epoch; bad samples are rejects."""

import gzip
import pickle
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import cv2
import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import cifar
from shards.crops.sample_cropper import CropJob
from shards.errors import ShardUnreadable
from shards.records import Chunk, Reject, ShardInfo, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from shards.tars.chunk_reader import read_chunk
from tests.tars import make_tar

RECIPE = cifar(counts=(2, 1), sizes=(16, 8), scales=((0.2, 1.0), (0.05, 0.2)))
JOB = CropJob(
    recipe=RECIPE, seed=3, admission=AdmissionConfig(), build_engine=partial(OpenCVEngine, RECIPE)
)


def png(seed, side=24):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture
def shard(tmp_path):
    """A shard of twelve samples; numbers 2, 5 and 7 are bad."""
    images = [png(seed) for seed in range(12)]
    images[2], images[5], images[7] = b"junk", png(5, 4), png(7)[:-40]
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
    assert [(reject.key, reject.reason) for reject in found.rejects] == [
        ("002", "not_an_image"),
        ("005", "too_small"),
        ("007", "truncated"),
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


def test_a_chunk_of_rejects_is_not_an_error(shard):
    """Error pages would end the run."""
    job = CropJob(
        recipe=RECIPE,
        seed=3,
        admission=AdmissionConfig(min_side=999),
        build_engine=JOB.build_engine,
    )
    found = ChunkCropper(job, RangeReader()).crop(shard, Turn(whole(shard), 0))
    assert not found.kept.any() and len(found.rejects) == 12 and found.num_bytes == 0


def test_a_shard_that_is_not_a_tar_is_one_reject(tmp_path):
    """One wrong file among ten thousand would end the run."""
    rng = np.random.default_rng(0)
    (tmp_path / "0.tar").write_bytes(gzip.compress(rng.bytes(300_000)))
    (shard,) = list_shards(str(tmp_path / "0.tar"))
    reader = RangeReader()
    parts = [
        read_chunk(reader, shard, Chunk(4, start, min(start + 65536, shard.num_bytes))).found
        for start in range(0, shard.num_bytes, 65536)
    ]
    (reject,) = parts[0]
    assert isinstance(reject, Reject) and parts[1:] == [[]] * (len(parts) - 1)
    assert (reject.shard, reject.offset, reject.reason) == (4, 0, "broken_tar")
    assert "a gzip file" in reject.detail


def test_a_missing_shard_is_an_error():
    """Skipping it would change the data."""
    gone = ShardInfo("/nowhere/0.tar", 10_000, "v")
    with pytest.raises(ShardUnreadable, match=r"/nowhere/0\.tar is gone"):
        ChunkCropper(JOB, RangeReader()).crop(gone, Turn(Chunk(0, 0, 10_000), 0))


def test_blank_images_are_rejected_with_min_entropy(tmp_path):
    """Placeholders of dead links would be trained on."""
    blank = cv2.imencode(".png", np.full((24, 24, 3), 200, np.uint8))[1].tobytes()
    images = [png(0), blank, png(2), png(3)[:-40]]
    (tmp_path / "0.tar").write_bytes(make_tar([(f"{i}.png", p) for i, p in enumerate(images)]))
    (shard,) = list_shards(str(tmp_path / "0.tar"))
    found = ChunkCropper(
        replace(JOB, admission=AdmissionConfig(min_entropy=2.0)), RangeReader()
    ).crop(shard, Turn(whole(shard), 0))
    assert [(reject.key, reject.reason) for reject in found.rejects] == [
        ("1", "blank"),
        ("3", "truncated"),
    ]
    plain = ChunkCropper(JOB, RangeReader()).crop(shard, Turn(whole(shard), 0))
    assert np.array_equal(found.crops[0], plain.crops[0][[0, 2]])


def test_an_image_in_quarantine_is_not_decoded(shard):
    """It would crash another process."""
    turn = Turn(whole(shard), 4)
    plain = ChunkCropper(JOB, RangeReader()).crop(shard, turn)
    known = frozenset(blake2b(png(i), digest_size=16).hexdigest() for i in (0, 3, 99))
    found = ChunkCropper(JOB, RangeReader()).crop(shard, replace(turn, quarantine=known))
    assert found.offsets.tolist() == plain.offsets.tolist() and found.crashed_images == ()
    assert [(r.key, r.reason) for r in found.rejects if r not in plain.rejects] == [
        ("000", "kills_decoder"),
        ("003", "kills_decoder"),
    ]
    rows = [row for row in range(9) if row not in (0, 2)]
    assert np.array_equal(found.crops[1], plain.crops[1][rows])
