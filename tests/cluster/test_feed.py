"""The data path: plans, readers and feeds give the batches of one process, whatever is lost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from shards.chunks import CropJob
from shards.manifest import Manifest
from shards.records import CropBatch
from shards.stream import BatchStream, StreamConfig, ThreadReaders, build_order
from tests.cluster.data_path import DataPath
from tests.cluster.marked import MarkedShards

pytestmark = pytest.mark.ray

BATCH = 12
STREAM = StreamConfig(batch_size=BATCH, chunk_bytes=1 << 20, chunks_per_block=3)


def in_process(manifest: Manifest, job: CropJob, num_batches: int) -> list[CropBatch]:
    """The batches of a single process."""
    with ThreadReaders(manifest, job, 1) as threads:
        order = build_order(manifest, STREAM, 0)
        stream = BatchStream(order, STREAM, job.admission, threads.submit)
        return list(itertools.islice(stream, num_batches))


def assert_same(ours: CropBatch, theirs: CropBatch, rank: int = 0, world: int = 1) -> None:
    rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for group, other in zip(ours.crops, theirs.crops, strict=True):
        assert np.array_equal(group, other[rows])
    assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.epochs, theirs.epochs)
    assert (ours.cursor, ours.digest) == (theirs.cursor, theirs.digest)
    assert [(r.offset, r.reason) for r in ours.rejects] == [
        (r.offset, r.reason) for r in theirs.rejects
    ]


@dataclass
class Running:
    """Readers that tests share, since they take seconds to start, and what they must give."""

    shards: MarkedShards
    path: DataPath
    expected: Sequence[CropBatch]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> MarkedShards:
    return MarkedShards(tmp_path_factory.mktemp("feed") / "shards", 7, {})


@pytest.fixture(scope="module")
def expected(shards: MarkedShards) -> list[CropBatch]:
    return in_process(shards.manifest, shards.job(), 60)


def test_ranks_get_their_rows_of_the_batches_of_one_process(
    one_ray: None, shards: MarkedShards, expected: list[CropBatch]
) -> None:
    """Who crops, who asks, and in how many ranks, must not show in a single pixel."""
    with DataPath(shards.manifest, shards.job(), STREAM) as path, path.feed() as feed:
        feed.enter(0, 1, 0)
        for step in range(8):
            assert_same(feed.next(), expected[step])
            path.tell("committed", step + 1)
        print(feed.status(), path.tell("status"))
