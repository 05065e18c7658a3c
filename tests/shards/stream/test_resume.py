"""Resume on real tars: a mixture with rejects, a subset, a quarantine and a tar inside a tar.

Readers, caches, ranks and the position of the resume must not change the batches.
"""

import json
import random
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice

import fsspec
import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.recipe import cifar
from shards.crops.sample_cropper import image_digest
from shards.records import Chunk, Cursor, Sample
from shards.samples.admission_config import AdmissionConfig
from shards.samples.subset_file import load_subset
from shards.stores.disk_cache import CacheConfig
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.journal import Journal
from shards.stream.manifest_listing import open_manifest
from shards.stream.mixture import parse_weights
from shards.stream.order import deal
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from shards.tars.chunk_reader import read_chunk
from tests.noise import noise
from tests.shards.jobs import crop_job
from tests.tars import make_tar

RECIPE = cifar(counts=(1, 1), sizes=(6, 4), scales=((0.2, 1.0), (0.05, 0.2)))
LENIENT = AdmissionConfig(max_reject_fraction=1.0)
CONFIG = StreamConfig(batch_size=1, chunk_bytes=8192, chunks_per_block=4)
QUARANTINED = "0003"


def plain_tar(first, num):
    """Return a tar of images with JSON members; every fifth image is broken."""
    members = []
    for number in range(first, first + num):
        data = b"junk" if number % 5 == 1 else noise(12, 12, seed=number)
        members += [(f"{number:04d}.png", data), (f"{number:04d}.json", b"{}")]
    return make_tar(members)


def deceiving_tar(first, num):
    """Return a tar of images with a long tar as a member in the middle.

    Chunks inside that member look as if its members were samples.
    """
    inner = make_tar(
        [(f"inner{number:03d}.png", noise(40, 40, seed=number)) for number in range(30)]
    )
    members = []
    for number in range(first, first + num):
        members.append((f"{number:04d}.png", noise(12, 12, seed=number)))
        if number == first + num // 2:
            members.append((f"{number:04d}.tar", inner))
    return make_tar(members)


class Setting:
    """Data of two sources, and all that a stream over it needs."""

    def __init__(self, folder):
        files = fsspec.filesystem("memory")
        files.pipe("/resume/a/0.tar", plain_tar(0, 12))
        files.pipe("/resume/a/1.tar", plain_tar(12, 9))
        files.pipe("/resume/b/0.tar", deceiving_tar(100, 16))
        keys = [f"{number:04d}" for number in range(200) if number % 7]
        keys += [f"inner{number:03d}" for number in range(40)]
        (folder / "keys.txt").write_text("\n".join(keys))
        self.subset = load_subset(str(folder / "keys.txt"))
        patterns = ["memory://resume/a/*.tar", "memory://resume/b/*.tar"]
        self.reader = RangeReader()
        self.manifest = open_manifest(patterns, self.reader, separate=True)
        self.weights = parse_weights([2, 1])
        self.order = build_order(
            self.manifest, CONFIG, 3, subset=self.subset.digest, weights=[(0, self.weights)]
        )
        self.job = crop_job(RECIPE, 3, subset=self.subset)
        self.cropper = ChunkCropper(self.job, self.reader)
        self.crops = {}
        shard = self.manifest.shards[0]
        first = read_chunk(self.reader, shard, Chunk(0, 0, shard.num_bytes)).found
        (known,) = [s for s in first if isinstance(s, Sample) and s.key == QUARANTINED]
        self.crashing = image_digest(known, AdmissionConfig())

    def journal(self, entries=()):
        """Return the journal of a run; the crashing image is known from block 4 on."""
        journal = Journal(self.order.manifest, self.order.digest)
        journal.add_weights(self.weights, 0)
        journal.add_quarantine(self.crashing, 4)
        for entry in entries:
            if entry.kind == "irregular":
                journal.add_irregular(entry.value, entry.block)
        return journal

    def submit(self, turn):
        """Crop at once, and cache the result."""
        place = (turn, turn.quarantine)
        if place not in self.crops:
            shard = self.manifest.shards[turn.chunk.shard]
            self.crops[place] = self.cropper.crop(shard, turn)
        future = Future()
        future.set_result(self.crops[place])
        return future

    def stream(self, journal, cursor=None, submit=None, **changes):
        config = replace(CONFIG, **changes)
        return BatchStream(self.order, config, LENIENT, submit or self.submit, cursor, journal)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(setting):
    """The journal and the first batches of a run without a stop."""
    journal = setting.journal()
    return journal, list(islice(setting.stream(journal), 240))


def through_json(cursor):
    return Cursor.from_json(json.loads(json.dumps(cursor.to_json())))


def same(one, other):
    """Return True if two batches have the same samples, pixels, rejects and cursor."""
    return (
        one.cursor == other.cursor
        and one.digest == other.digest
        and (one.rejects, one.num_unselected) == (other.rejects, other.num_unselected)
        and all(np.array_equal(a, b) for a, b in zip(one.crops, other.crops, strict=True))
    )


def test_the_data_has_every_kind_of_trouble(whole):
    """Resumes on clean data would prove little."""
    journal, batches = whole
    last = batches[-1].cursor
    assert set(last.reject_reasons) >= {"not_an_image", "kills_decoder"}
    assert last.num_unselected > 20
    assert [entry.value for entry in journal.entries if entry.kind == "irregular"] == [2]
    assert {tuple(batch.epochs.tolist()) for batch in batches} >= {(epoch,) for epoch in range(8)}
    assert {batch.ids[0, 0] for batch in batches} == {0, 1, 2}


def test_an_irregular_shard_is_exact_after_its_discovery(setting, whole):
    """Members of a tar inside the tar would be trained on as samples."""
    journal, batches = whole
    (entry,) = [entry for entry in journal.entries if entry.kind == "irregular"]
    shard = setting.manifest.shards[2]
    walked = Chunk(2, 0, shard.num_bytes, walked=True)
    found = read_chunk(setting.reader, shard, walked).found
    truth = {item.offset for item in found if isinstance(item, Sample)}
    seen = [(batch.cursor.block, int(batch.ids[0, 1])) for batch in batches if batch.ids[0, 0] == 2]
    assert {offset for block, offset in seen if block <= entry.block - 1} - truth
    assert not {offset for block, offset in seen if block > entry.block} - truth


def check_resumes(setting, whole, places, length):
    """Resume after each batch of `places`, with the journal of that time and with the latest."""
    journal, batches = whole
    rng = random.Random(1)
    for place in places:
        cursor = through_json(batches[place].cursor)
        seen = cursor.block if cursor.slot else cursor.block - 1
        then = setting.journal([e for e in journal.entries if e.known_after <= seen])
        for entries in (then, setting.journal(journal.entries)):
            again = setting.stream(
                entries,
                cursor,
                num_lookahead_blocks=rng.choice([1, 2, 5]),
                max_bytes=rng.choice([1, 5_000, 1 << 30]),
            )
            tail = list(islice(again, min(length, len(batches) - place - 1)))
            assert all(same(a, b) for a, b in zip(tail, batches[place + 1 :], strict=False))


def test_a_resume_continues_with_the_same_batches(setting, whole):
    """A resumed run would be another run."""
    check_resumes(setting, whole, range(0, 239, 5), 8)


@pytest.mark.slow
def test_a_resume_at_every_slot_continues_with_the_same_batches(setting, whole):
    """One slot with a wrong cursor would be missed by a sample of slots."""
    check_resumes(setting, whole, range(239), 240)


@pytest.mark.parametrize(("num_readers", "cached"), [(1, False), (3, True)])
def test_readers_and_caches_do_not_change_the_batches(
    setting, whole, num_readers, cached, tmp_path
):
    """A run that moves to another machine, with other disks and cores, must be the same run."""
    cache = CacheConfig(folder=str(tmp_path / "cache"), max_bytes=60_000) if cached else None
    job = replace(setting.job, sources=SourceConfig(cache=cache))
    for place, entries in ((1, ()), (50 + num_readers, whole[0].entries)):
        cursor = through_json(whole[1][place].cursor)
        with ThreadReaders(setting.manifest, job, num_readers) as readers:
            stream = setting.stream(setting.journal(entries), cursor, submit=readers.submit)
            tail = list(islice(stream, 40))
        assert all(map(same, tail, whole[1][place + 1 :]))
    assert not cached or any((tmp_path / "cache").iterdir())


def test_ranks_resume_with_the_batches_of_another_number_of_ranks(setting, whole):
    """A run could not continue after the loss of a machine."""
    expected = list(islice(setting.stream(setting.journal(), batch_size=8), 20))
    cursor = through_json(expected[9].cursor)
    for world in (2, 8):
        ranks = [
            iter(setting.stream(setting.journal(whole[0].entries), cursor, batch_size=8))
            for _ in range(world)
        ]
        for batch in expected[10:]:
            parts = [next(rank) for rank in ranks]
            rows = [part.ids[deal(8, rank, world)] for rank, part in enumerate(parts)]
            assert np.array_equal(np.concatenate(rows), batch.ids)
            assert {part.digest for part in parts} == {batch.digest}
