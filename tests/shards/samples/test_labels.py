"""Labels: a field of a sample as a whole number, in the row of its crops."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.recipe import cifar
from shards.crops.verify_engine import VerifyingEngine
from shards.records import Chunk, Sample, Turn
from shards.samples.labels import NO_LABEL, read_label, read_labels
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.noise import noise
from tests.shards.jobs import crop_job
from tests.tars import make_tar

RECIPE = cifar(sizes=(16,))
JOB = crop_job(RECIPE, label="cls")


def sample(offset=0, **fields):
    return Sample(0, offset, "k", {name: bytes(data) for name, data in fields.items()})


def tagged(value):
    return sample(json=json.dumps({"tag": value}).encode())


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (tagged(7), 7),
        (tagged("7"), 7),
        (tagged(" 7\n"), 7),
        (tagged(0), 0),
        (tagged(["3"]), 3),
        (tagged(7.0), 7),
        (tagged("7.0"), 7),
        (sample(tag=b"\xef\xbb\xbf7\r\n"), 7),
        (tagged(-1), NO_LABEL),
        (sample(tag=b"-1\n"), NO_LABEL),
        (tagged(float("nan")), NO_LABEL),
        (tagged(None), NO_LABEL),
        (tagged(""), NO_LABEL),
        (tagged([]), NO_LABEL),
        (tagged({"a": 1}), NO_LABEL),
        (sample(json=b"{"), NO_LABEL),
        (sample(json=b"[1]"), NO_LABEL),
        (sample(), NO_LABEL),
        (sample(tag=b"5\n", json=b'{"tag": 6}'), 5),
    ],
)
def test_label_is_a_member_or_a_json_field(given, label):
    """A class number would change, or a sample without label get one."""
    assert read_label(given, "tag", 0) == label


def test_words_become_large_numbers_that_are_equal_everywhere():
    """A word would differ between processes, or be taken for a class number."""
    words = ["cat", "dog", "Cat", "3rd", "2.5", True, 1 << 40]
    labels = [read_label(tagged(word), "tag", 0) for word in words]
    assert len(set(labels)) == len(words) and all(1 << 31 <= label < 1 << 63 for label in labels)
    assert labels[0] == 3790442931510345597


def test_each_epoch_draws_one_entry_of_a_list():
    """Only one hashtag would count, or a resumed epoch draw another one."""
    tags = ["a", "b", "c"]
    known = {read_label(tagged(tag), "tag", 0) for tag in tags}
    drawn = [read_label(tagged(tags), "tag", epoch) for epoch in range(60)]
    assert set(drawn) == known and min(drawn.count(label) for label in known) > 8
    assert read_labels([tagged(tags)], "tag", 3).tolist() == [drawn[3]]


@pytest.fixture
def shard(tmp_path):
    """Ten images, three of them broken; image i has class i % 4, image 4 has none."""
    members = []
    for i in range(10):
        data = b"junk" if i in (0, 5, 9) else noise(24, 24, seed=i)
        members.append((f"{i:03d}.png", data))
        if i != 4:
            members.append((f"{i:03d}.cls", str(i % 4).encode()))
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    return list_shards(str(tmp_path / "0.tar"))[0]


EXPECTED = [1, 2, 3, NO_LABEL, 2, 3, 0]


def test_labels_stay_with_the_rows_of_kept_crops(shard):
    """After a reject, every label would belong to another image."""
    turn = Turn(Chunk(0, 0, shard.num_bytes), 0)
    # An engine without torch, because a child process would import it for ten seconds.
    verify = replace(JOB, build_engine=partial(VerifyingEngine, RECIPE), only_verify=True)
    for found in (
        ChunkCropper(JOB, RangeReader()).crop(shard, turn),
        ChunkCropper(verify, RangeReader()).crop_isolated(shard, turn),
    ):
        assert found.labels is not None and found.labels.tolist() == EXPECTED
        assert len(found.crops[0]) == len(EXPECTED)


def test_batch_has_the_labels_of_its_samples(shard):
    """Mixing samples would separate images and labels."""
    reader = RangeReader()
    manifest = open_manifest((shard.uri,), reader)
    config = StreamConfig(batch_size=7, chunk_bytes=4096, chunks_per_block=2)
    order = build_order(manifest, config, seed=1)
    found = ChunkCropper(JOB, reader).crop(shard, Turn(Chunk(0, 0, shard.num_bytes), 0))
    by_offset = dict(zip(found.offsets[found.kept].tolist(), EXPECTED, strict=True))
    with ThreadReaders(manifest, JOB, 1) as readers:
        batch = next(iter(BatchStream(order, config, JOB.admission, readers.submit)))
    assert batch.labels is not None and batch.labels.dtype == np.int64
    assert batch.labels.tolist() == [by_offset[offset] for offset in batch.ids[:, 1].tolist()]
