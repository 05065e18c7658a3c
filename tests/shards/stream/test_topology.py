"""The batches are the same for any number of ranks and readers."""

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
WORLDS, READERS = (1, 2, 4, 8), (1, 3, 7)


class QuickEngine:
    """Crops without a decoder: where they come from is all that is asked here."""

    def __init__(self, recipe):
        self.recipe = recipe

    def crop(self, images, parameters):  # noqa: ARG002 - they are an engine's
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
    """Some 600 tiny images in four shards; every fortieth is none."""
    folder = tmp_path_factory.mktemp("topology")
    rng = np.random.default_rng(0)
    for shard in range(4):
        members = []
        for number in range(140 + 10 * shard):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            data = cv2.imencode(".png", pixels)[1].tobytes() if number % 40 else b"none"
            members.append((f"{shard}{number:04d}.png", data))
        (folder / f"{shard}.tar").write_bytes(make_tar(members))
    return open_manifest(str(folder), RangeReader())


def batches(manifest, submit):
    order = build_order(manifest, CONFIG, seed=1)
    return BatchStream(order, CONFIG, AdmissionConfig(), submit)


def digest_of_ranks(parts):
    """The digest of a batch, from what its ranks have of it."""
    rows = np.concatenate([np.column_stack([part.epochs, part.ids])[rows] for part, rows in parts])
    return blake2b(rows.astype("<i8").tobytes(), digest_size=16).hexdigest()


def digests(manifest, world, num_readers, num_batches):
    """What `world` ranks train on, each with a stream of its own; the readers are shared, and so is
    what they made, for as long as a test lasts."""
    made = {}
    with ThreadReaders(manifest, JOB, num_readers) as readers:

        def submit(turn):
            if turn not in made:
                made[turn] = readers.submit(turn)
            return made[turn]

        streams = [islice(batches(manifest, submit), num_batches) for _ in range(world)]
        slices = [deal(CONFIG.batch_size, rank, world) for rank in range(world)]
        return [
            digest_of_ranks(zip(ranks, slices, strict=True)) for ranks in zip(*streams, strict=True)
        ]


def check(manifest, num_batches):
    """One list of digests, for every number of ranks and readers."""
    found = {
        (world, num_readers): digests(manifest, world, num_readers, num_batches)
        for world in WORLDS
        for num_readers in READERS
    }
    assert len(found) == 12 and all(digests == found[1, 1] for digests in found.values())
    assert len(set(found[1, 1])) == num_batches
    with ThreadReaders(manifest, JOB, 2) as readers:
        whole = islice(batches(manifest, readers.submit), num_batches)
        assert [batch.digest for batch in whole] == found[1, 1]
    return blake2b("".join(found[1, 1]).encode(), digest_size=16).hexdigest()


def test_a_few_hundred_batches_are_the_same_for_all_ranks_and_readers(manifest):
    """Into the third epoch."""
    check(manifest, 200)


@pytest.mark.slow
def test_ten_thousand_batches_are_the_same_for_all_ranks_and_readers(manifest, share):
    """A hundred and twenty epochs."""
    print(check(manifest, round(10_000 * share)))
