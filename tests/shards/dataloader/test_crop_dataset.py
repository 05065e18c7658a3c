"""CropDataset in a DataLoader: the batches of a run, and the state of the delivered batch."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from shards.crops.recipe import swav
from shards.dataloader.crop_dataset import CropDataset
from shards.dataloader.open_data import ReadConfig
from shards.dataloader.tensors import to_tensors
from shards.errors import ConfigError, CursorMismatch
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.shards.dataloader.test_sample_stream import refuse
from tests.shards.jobs import crop_job

RECIPE = swav(counts=(2, 3), sizes=(16, 8))
STREAM = StreamConfig(batch_size=12, chunk_bytes=4096, chunks_per_block=5)
CONFIG = ReadConfig(seed=3, stream=STREAM)
# torchdata calls a function that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def dataset(folder, **options):
    return CropDataset(str(folder), RECIPE, options.pop("config", CONFIG), **options)


def loader(folder, num_workers, kind=DataLoader, **options):
    return kind(dataset(folder, **options), batch_size=None, num_workers=num_workers)


def take(batches, num):
    return list(islice(iter(batches), num))


def same(one, other):
    """Return True if two batches are equal in everything."""
    return (
        one.digest == other.digest
        and one.state == other.state
        and torch.equal(one.ids, other.ids)
        and torch.equal(one.epochs, other.epochs)
        and all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    )


@pytest.fixture(scope="module")
def expected(synthetic_shards):
    """The first batches of a run, without a loader."""
    manifest = open_manifest(str(synthetic_shards), RangeReader())
    with ThreadReaders(manifest, crop_job(RECIPE, 3)) as readers:
        order = build_order(manifest, STREAM, 3)
        return take(BatchStream(order, STREAM, AdmissionConfig(), readers.submit), 10)


@pytest.fixture(scope="module")
def whole(synthetic_shards):
    """The first batches of a loader without a worker."""
    return take(loader(synthetic_shards, 0), 12)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataloader_gives_the_batches_of_a_run(synthetic_shards, expected, num_workers):
    """Samples or pixels would differ from those of a run, in this process or in a worker."""
    for batch, run in zip(take(loader(synthetic_shards, num_workers), 10), expected, strict=False):
        assert batch.digest == run.digest
        assert batch.ids.tolist() == run.ids.tolist()
        assert batch.epochs.tolist() == run.epochs.tolist()
        assert [view.dtype for view in batch.views] == [torch.uint8] * 2
        for view, group in zip(batch.views, run.crops, strict=True):
            assert np.array_equal(view.numpy(), group)


def test_normalised_batches_equal_the_inputs_of_a_model(synthetic_shards, expected):
    """A second mean or deviation would be a silent difference."""
    batch = take(loader(synthetic_shards, 1, form="normalised"), 1)[0]
    for view, wanted in zip(batch.views, to_tensors(expected[0].crops, "cpu"), strict=True):
        assert torch.equal(view, wanted) and view.dtype == torch.float32


@pytest.mark.parametrize(
    ("num_workers", "used"), [(0, 1), pytest.param(1, 7, marks=pytest.mark.slow)]
)
def test_a_batch_carries_the_state_that_follows_it(synthetic_shards, whole, num_workers, used):
    """A loader that fetched ahead would skip batches."""
    batches = iter(loader(synthetic_shards, num_workers))
    state = json.loads(json.dumps(take(batches, used)[-1].state))
    again = dataset(synthetic_shards)
    again.load_state_dict(state)
    resumed = take(DataLoader(again, batch_size=None, num_workers=num_workers), 4)
    assert all(map(same, resumed, whole[used:])) and len(resumed) == 4


@pytest.mark.parametrize(
    ("num_workers", "every"), [(0, 1), pytest.param(1, 4, marks=pytest.mark.slow)]
)
def test_a_stateful_dataloader_resumes_exactly(synthetic_shards, whole, num_workers, every):
    """torchdata's own state would be wrong with prefetch and rare snapshots."""

    def open_loader():
        return StatefulDataLoader(
            dataset(synthetic_shards),
            batch_size=None,
            num_workers=num_workers,
            snapshot_every_n_steps=every,
        )

    for used in (0, 6):
        first = open_loader()
        batches = iter(first)
        taken = take(batches, used)
        state = first.state_dict()
        again = open_loader()
        again.load_state_dict(state)
        resumed = take(again, 3)
        assert all(map(same, taken, whole))
        assert all(map(same, resumed, whole[used:])), used


def test_a_state_from_the_main_process_is_refused_with_a_worker(synthetic_shards):
    """The main process would answer with the start."""
    there = dataset(synthetic_shards)
    batches = iter(DataLoader(there, batch_size=None, num_workers=1))
    batch = next(batches)
    with pytest.raises(ConfigError, match=r"in the main process, .* save batch\.state"):
        there.state_dict()
    there.load_state_dict(batch.state)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_several_workers_are_refused(synthetic_shards):
    """Every worker would make every batch."""
    refuse(loader(synthetic_shards, 2), r"num_workers=2, but (?s:.*) raise num_readers")


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_rows_of_the_same_batch(synthetic_shards, expected, world):
    """Ranks together must have the batch of one process."""
    ranks = [take(dataset(synthetic_shards, rank=r, world=world), 3) for r in range(world)]
    for index, run in enumerate(expected[:3]):
        parts = [rank[index] for rank in ranks]
        assert {part.digest for part in parts} == {run.digest}
        assert {len(part.ids) for part in parts} == {12 // world}
        assert torch.cat([part.ids for part in parts]).tolist() == run.ids.tolist()
        for group, crops in enumerate(run.crops):
            views = torch.cat([part.views[group] for part in parts])
            assert np.array_equal(views.numpy(), crops)


def test_another_number_of_ranks_can_resume(synthetic_shards, whole):
    """A run could not continue after the loss of machines."""
    two = take(dataset(synthetic_shards, rank=1, world=2), 4)
    again = dataset(synthetic_shards, rank=0, world=1)
    again.load_state_dict(two[3].state)
    assert same(take(again, 1)[0], whole[4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank=2 of world=2; rank must be from 0 to world - 1"),
        ({"world": 5}, "batch_size=12 over 5 ranks"),
    ],
)
def test_invalid_settings_are_refused_at_once(synthetic_shards, options, message):
    """The error would be hidden in the traceback of a worker."""
    with pytest.raises(ConfigError, match=message):
        dataset(synthetic_shards, **options)


def test_a_state_of_another_order_is_refused(synthetic_shards, tmp_path):
    """A run would continue with other samples."""
    state = take(dataset(synthetic_shards), 1)[0].state
    other = dataset(synthetic_shards, config=replace(CONFIG, seed=4))
    with pytest.raises(CursorMismatch, match="belongs to another order"):
        other.load_state_dict(state)
    with pytest.raises(CursorMismatch, match="not those of a stream position"):
        other.load_state_dict({"epoch": 3})
