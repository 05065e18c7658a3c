"""Crops of readers of the same node are read where they lie; other readers send the same ones."""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.protocol.messages import LentRows, Loan, Rows
from cluster.trainers.borrowed_crops import BorrowedCrops
from shards.crops.array_pool import ArrayPool
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.crops.sample_cropper import CropJob
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import pack
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.cluster.data_path import DataPath

RECIPE = CropRecipe(
    (
        ViewGroup(num_views=2, size=160, scale=(0.3, 1.0)),
        ViewGroup(num_views=1, size=96, scale=(0.1, 0.3)),
    )
)
STEPS, BATCH = 12, 16
STREAM = StreamConfig(batch_size=BATCH, chunk_bytes=1 << 18)


def test_memory_that_cannot_be_read_is_asked_for_as_a_copy() -> None:
    """A trainer in another container than its reader would end, or train on wrong bytes."""
    file = ArrayPool(8 << 20).share()
    assert file is not None
    memory = file.empty(1 << 20)
    assert memory is not None
    memory[:12] = range(12)
    lent = LentRows(np.array([6, 0]), (2, 3))
    rows = Rows((lent,), (), Loan(3, file.name))
    borrowed = BorrowedCrops("here")
    crops = borrowed.look("a", rows)
    assert crops is not None and [row.tolist() for row in crops[0]] == [
        [[6, 7, 8], [9, 10, 11]],
        [[0, 1, 2], [3, 4, 5]],
    ]
    assert borrowed.is_lending("a") and borrowed.borrower("a") is not None
    borrowed.done("a", rows)
    assert borrowed.waiting() == ["a"] and borrowed.pop_done("a") == (3,)
    assert borrowed.waiting() == []
    os.close(file.name.descriptor)
    assert borrowed.look("b", rows) is None
    assert borrowed.borrower("b") is None and not borrowed.is_lending("b")
    assert BorrowedCrops("").borrower("a") is None


@pytest.mark.ray
@pytest.mark.slow
def test_lent_and_sent_crops_are_those_of_one_process(one_ray: None, tmp_path: Path) -> None:
    """Crops would be copied twice more on every machine, or be those of another sample."""
    pack(entries_from_synthetic(300, seed=0, size=64), tmp_path / "shards")
    manifest = open_manifest(str(tmp_path / "shards"), RangeReader())
    job = CropJob(
        recipe=RECIPE,
        seed=0,
        admission=AdmissionConfig(),
        build_engine=lambda: NativeEngine(RECIPE),
    )
    with ThreadReaders(manifest, job, 1) as threads:
        order = build_order(manifest, STREAM, 0)
        stream = BatchStream(order, STREAM, job.admission, threads.submit)
        expected = list(itertools.islice(stream, STEPS))
    with DataPath(manifest, job, STREAM) as path:
        for name in path.readers:
            path.started(name)
        for term, borrows in enumerate((True, False), start=2):
            ray.get(path.control.begin.remote(term=term))
            with path.feed(borrows=borrows) as feed:
                feed.enter(0, 1, 0)
                for step in range(STEPS):
                    for group, other in zip(feed.next().crops, expected[step].crops, strict=True):
                        assert np.array_equal(group, other)
                    path.tell("committed", step + 1)
                    time.sleep(0.02)  # readers crop into memory that is free
                status = feed.status()
            assert status["taken_bytes"] >= STEPS * BATCH * RECIPE.num_bytes
            assert status["lent_bytes"] == (status["taken_bytes"] if borrows else 0)
