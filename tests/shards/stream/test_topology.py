"""Batches are the same for any number of ranks and readers."""

from functools import partial
from hashlib import blake2b
from itertools import islice

import cv2
import numpy as np
import pytest

from shards.crops.engine import CroppedImages
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.crops.sample_cropper import CropJob
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.order import deal
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.tars import make_tar

RECIPE = CropRecipe((ViewGroup(num_views=1, size=2, scale=(0.5, 1.0)),))
CONFIG = StreamConfig(batch_size=8, chunk_bytes=1 << 15, chunks_per_block=5)
# Pairs of numbers of ranks and of readers.
FEW = ((1, 1), (2, 7), (4, 3), (8, 1))
ALL = tuple((world, num_readers) for world in (1, 2, 4, 8) for num_readers in (1, 3, 7))


class QuickEngine:
    """Engine without a decoder: a crop only shows which image it comes from."""

    def __init__(self, recipe):
        self.recipe = recipe

    def crop(self, images, parameters):  # noqa: ARG002
        sides = [len(image.data) % 256 for image in images]
        crops = np.zeros((len(images), 1, 2, 2, 3), np.uint8)
        crops += np.array(sides, np.uint8).reshape(-1, 1, 1, 1, 1)
        return CroppedImages((crops,), np.ones(len(images), bool))


JOB = CropJob(
    recipe=RECIPE,
    seed=1,
    admission=AdmissionConfig(),
    build_engine=partial(QuickEngine, RECIPE),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Return the manifest of 300 tiny images in four shards; every fortieth file is broken."""
    folder = tmp_path_factory.mktemp("topology")
    rng = np.random.default_rng(0)
    for shard in range(4):
        members = []
        for number in range(60 + 10 * shard):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            data = cv2.imencode(".png", pixels)[1].tobytes() if number % 40 else b"junk"
            members.append((f"{shard}{number:04d}.png", data))
        (folder / f"{shard}.tar").write_bytes(make_tar(members))
    return open_manifest(str(folder), RangeReader())


def batches(manifest, submit):
    order = build_order(manifest, CONFIG, seed=1)
    return BatchStream(order, CONFIG, AdmissionConfig(), submit)


def digest_of_ranks(parts):
    """Return the digest of a batch from the rows of its ranks."""
    rows = np.concatenate([np.column_stack([part.epochs, part.ids])[rows] for part, rows in parts])
    return blake2b(rows.astype("<i8").tobytes(), digest_size=16).hexdigest()


def digests(manifest, world, num_readers, num_batches):
    """Return the digests of `world` ranks; each has its own stream, and all share the readers."""
    futures = {}
    with ThreadReaders(manifest, JOB, num_readers) as readers:

        def submit(turn):
            if turn not in futures:
                futures[turn] = readers.submit(turn)
            return futures[turn]

        streams = [islice(batches(manifest, submit), num_batches) for _ in range(world)]
        slices = [deal(CONFIG.batch_size, rank, world) for rank in range(world)]
        return [
            digest_of_ranks(zip(ranks, slices, strict=True)) for ranks in zip(*streams, strict=True)
        ]


def check(manifest, pairs, num_batches):
    """Compare the digests of all `pairs` with those of a stream without ranks."""
    with ThreadReaders(manifest, JOB, 2) as readers:
        whole = islice(batches(manifest, readers.submit), num_batches)
        expected = [batch.digest for batch in whole]
    assert len(set(expected)) == num_batches
    for world, num_readers in pairs:
        assert digests(manifest, world, num_readers, num_batches) == expected


def test_ranks_and_readers_do_not_change_the_batches(manifest):
    """A run could not move to another number of machines; 100 batches reach the third epoch."""
    check(manifest, FEW, 100)


@pytest.mark.slow
def test_ranks_and_readers_do_not_change_ten_thousand_batches(manifest, share):
    """A rare race or an error in a late epoch would change the run."""
    check(manifest, ALL, round(10_000 * share))
