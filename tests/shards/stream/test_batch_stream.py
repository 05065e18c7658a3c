"""BatchStream: batches in canonical order, the budget of rejects, cursors, and readers as threads.

Random readers, bounds and resumes are in `test_simulation`; real images and tars in `test_resume`.
"""

import json
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice, pairwise
from typing import get_args

import numpy as np
import pytest

from shards.crops.recipe import cifar
from shards.errors import BudgetExceeded, ConfigError, CursorMismatch
from shards.records import Chunk, ChunkCrops, Cursor, Reason, Reject, Sample, ShardInfo
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order, check_bytes
from shards.stream.manifest_listing import open_manifest
from shards.stream.mixture import parse_weights
from shards.stream.order import Order, OrderConfig
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from shards.tars.chunk_reader import read_chunk
from tests.shards.jobs import crop_job

RECIPE = cifar(counts=(1, 2), sizes=(8, 4), scales=((0.2, 1.0), (0.05, 0.2)))
JOB = crop_job(RECIPE, 5)
LENIENT = AdmissionConfig(max_reject_fraction=1.0)
SMALL = StreamConfig(batch_size=1, chunk_bytes=4096, chunks_per_block=5, max_bytes=60_000)


def take(stream, num):
    return list(islice(stream, num))


def rows(batches):
    """(epoch, shard, offset) of every sample in order."""
    return [
        (epoch, *ids)
        for batch in batches
        for epoch, ids in zip(batch.epochs.tolist(), batch.ids.tolist(), strict=True)
    ]


class MadeChunks:
    """Chunks of one shard without a tar, with chosen numbers of samples and rejects."""

    def __init__(self, num_chunks, samples=4, reject=lambda _: False):
        self.shards = (ShardInfo("made.tar", num_chunks * 4096, "v"),)
        self.samples, self.reject = samples, reject

    def crop(self, turn):
        index = turn.chunk.start // 4096
        num = self.samples(index) if callable(self.samples) else self.samples
        offsets = turn.chunk.start + 512 * np.arange(num, dtype=np.int64)
        kept = np.array([not self.reject(int(offset)) for offset in offsets], dtype=bool)
        crops = np.zeros((int(kept.sum()), 1, 16, 16, 3), dtype=np.uint8)
        crops += (offsets[kept] // 512 % 256).astype(np.uint8).reshape(-1, 1, 1, 1, 1)
        rejects = tuple(Reject(0, int(at), "k", "not_an_image") for at in offsets[~kept])
        return ChunkCrops(turn.chunk, turn.epoch, offsets, kept, (crops,), rejects)

    def submit(self, turn):
        future = Future()
        future.set_result(self.crop(turn))
        return future

    def order(self, config=SMALL, seed=0):
        per_block = config.chunks_per_block
        settings = OrderConfig(
            seed=seed, chunk_bytes=config.chunk_bytes, chunks_per_block=per_block
        )
        return Order(self.shards, "made", settings)

    def stream(self, config=SMALL, admission=LENIENT, submit=None, cursor=None):
        return BatchStream(self.order(config), config, admission, submit or self.submit, cursor)

    def mixed(self, config):
        """Return a stream of two shards like this one, mixed one to one."""
        shards = (self.shards[0], replace(self.shards[0], uri="other.tar", source=1))
        order = OrderConfig(seed=0, chunk_bytes=4096, chunks_per_block=config.chunks_per_block)
        order = Order(shards, "made", order, [(0, parse_weights([1, 1]))])
        return BatchStream(order, config, LENIENT, self.submit)


def every_other_chunk(offset):
    return offset // 4096 % 2 == 0


@pytest.fixture(scope="module")
def manifest(synthetic_shards):
    return open_manifest(str(synthetic_shards), RangeReader())


def test_reader_threads_yield_every_sample_once_per_epoch(manifest):
    """A lost or doubled sample breaks the definition of an epoch."""
    results = []
    config = replace(SMALL, batch_size=8)
    with ThreadReaders(manifest, JOB, 2, results.append) as readers:
        stream = BatchStream(build_order(manifest, config, 5), config, LENIENT, readers.submit)
        seen = rows(take(stream, 24))
    expected = [
        (shard, item.offset)
        for shard, info in enumerate(manifest.shards)
        for item in read_chunk(RangeReader(), info, Chunk(shard, 0, info.num_bytes)).found
        if isinstance(item, Sample)
    ]
    assert len(expected) == 96
    orders = [[row[1:] for row in seen if row[0] == epoch] for epoch in range(2)]
    assert [sorted(order) for order in orders] == [expected, expected]
    assert orders[0] != orders[1] != expected
    assert sum(len(result.offsets) for result in results) >= 192


def test_a_reject_does_not_move_other_samples():
    """One broken image must not shift the samples after it."""
    before = take(MadeChunks(24).stream(), 200)
    broken = [int(batch.ids[0, 1]) for batch in (before[0], before[17], before[95])]
    after = take(MadeChunks(24, reject=lambda offset: offset in broken).stream(), 190)
    kept = [batch for batch in before if batch.ids[0, 1] not in broken]
    for one, other in zip(after, kept, strict=False):
        assert one.digest == other.digest and np.array_equal(one.crops[0], other.crops[0])
        assert (one.cursor.block, one.cursor.slot) == (other.cursor.block, other.cursor.slot)


def test_rejects_are_counted_once_also_after_a_resume():
    """Every reject must be reported with exactly one batch."""
    made, config = MadeChunks(24, reject=lambda at: at % 5 == 0), replace(SMALL, batch_size=4)
    batches, total = take(made.stream(config), 60), Counter()
    for batch in batches:
        total.update(reject.reason for reject in batch.rejects)
        assert batch.cursor.reject_reasons == total
        assert batch.cursor.num_rejects == total.total()
    assert total.total() >= 20 and batches[-1].cursor.num_samples == 240
    for one, other in pairwise(batches):
        again = next(iter(made.stream(config, cursor=one.cursor)))
        assert (again.cursor, again.rejects) == (other.cursor, other.rejects)


def test_readers_have_work_while_the_trainer_computes():
    """Without lookahead every reader would wait for the trainer."""
    turns, made = [], MadeChunks(64)

    def submit(turn):
        turns.append(turn)
        return made.submit(turn)

    next(iter(made.stream(replace(SMALL, chunks_per_block=4), submit=submit)))
    assert 4 < len(turns) <= 60_000 // (4 * 768)


def test_a_pass_smaller_than_a_batch_is_refused():
    """A batch would hold the same image twice."""
    made = MadeChunks(5)
    config = replace(SMALL, batch_size=21, chunks_per_block=2)
    with pytest.raises(ConfigError, match=r"batch_size=21, .* holds only 20 .* of at most 20"):
        next(iter(made.stream(config)))
    assert len(take(made.stream(replace(config, batch_size=20)), 3)) == 3


def test_a_mixture_ends_if_one_source_has_rejects_only():
    """The weight of the source could not be honoured; a small source alone is allowed."""
    made = MadeChunks(6)
    config = replace(SMALL, batch_size=2, chunks_per_block=4)
    assert len(take(made.mixed(replace(config, batch_size=30)), 20)) == 20  # more than a pass has
    good, bad = made.crop, MadeChunks(6, reject=lambda _: True).crop
    made.crop = lambda turn: (bad if turn.chunk.shard == 1 else good)(turn)
    with pytest.raises(BudgetExceeded, match="every sample of the data of one of the sources was"):
        take(made.mixed(config), 100)


def test_data_of_rejects_only_ends_with_the_table_of_reasons():
    """The stream would read for ever."""
    made = MadeChunks(6, reject=lambda _: True)
    with pytest.raises(
        BudgetExceeded, match=r"every sample .*\n  not_an_image +24   first: made"
    ) as caught:
        next(iter(made.stream(replace(SMALL, batch_size=2))))
    assert caught.value.reasons == {"not_an_image": 24}


def test_the_budget_counts_after_probation_and_across_a_resume():
    """A run must not end for a bad start, nor survive bad data by restarting."""
    made = MadeChunks(64, reject=every_other_chunk)
    config = replace(SMALL, batch_size=2, chunks_per_block=4)
    strict = AdmissionConfig(max_reject_fraction=0.4, probation=100)
    num_samples = 0
    with pytest.raises(BudgetExceeded, match=r"samples were rejected, more than 40%; .* raise"):
        for batch in made.stream(config, strict):
            num_samples += len(batch)
    assert 20 <= num_samples <= 80
    lenient = AdmissionConfig(max_reject_fraction=0.75, probation=100)
    batches = take(made.stream(config, lenient), 200)
    assert len(batches) == 200
    with pytest.raises(BudgetExceeded):
        take(made.stream(config, strict, cursor=batches[30].cursor), 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest": "other"}, r"other data \(manifest other, now .*\); resume with the --data"),
        ({"order": "other"}, r"another order \(digest other, now .*\); keep seed, chunk_bytes"),
        ({"block": -1}, r"block -1, slot 0; both must be at least 0, .* damaged: remove this"),
        ({"slot": -1}, r"slot -1; .* damaged: remove this checkpoint to resume from the one"),
        ({"block": 3, "slot": 10**6}, r"slot 1000000 of block 3, which has \d+ slots; remove"),
    ],
)
def test_a_cursor_that_is_not_in_this_order_is_refused(change, message):
    """A run would continue with other data, or with another block."""
    made = MadeChunks(24)
    cursor = Cursor(manifest="made", order=made.order().digest)
    with pytest.raises(CursorMismatch, match=message):
        next(iter(made.stream(cursor=replace(cursor, **change))))


def test_the_first_batch_needs_only_the_chunks_of_its_block():
    """A new or resumed run must not wait for chunks of later blocks."""
    made = MadeChunks(24)
    for cursor in [None, *(batch.cursor for batch in take(made.stream(), 60))]:
        block = made.order().block(cursor.block if cursor else 0)

        def submit(turn, block=block):
            return made.submit(turn) if turn in block else Future()  # never done

        assert len(next(iter(made.stream(cursor=cursor, submit=submit)))) == 1


def test_a_cursor_fits_into_two_kilobytes():
    """It must fit into the header of a checkpoint."""
    cursor = Cursor(
        manifest="f" * 32,
        order="f" * 32,
        block=10**12,
        journal=10**6,
        num_unselected=10**15,
        slot=10**9,
        num_samples=10**15,
        num_rejects=10**15,
        reject_reasons=dict.fromkeys(get_args(Reason), 10**14),
    )
    assert len(json.dumps(cursor.to_json())) < 2000
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor


def test_settings_are_computed_from_the_data_or_refused(manifest):
    """A bound smaller than a block would be exceeded silently."""
    order = build_order(manifest, StreamConfig(batch_size=8), 5)
    assert order.config == OrderConfig(seed=5, chunk_bytes=1 << 18, chunks_per_block=8)
    order = build_order(manifest, SMALL, 5)
    assert order.config == OrderConfig(seed=5, chunk_bytes=4096, chunks_per_block=5)
    check_bytes(manifest, order, SMALL, RECIPE.num_bytes)
    with pytest.raises(ConfigError, match=r"max_bytes=1000, but one block of 5 chunks .*; raise"):
        check_bytes(manifest, order, replace(SMALL, max_bytes=1000), RECIPE.num_bytes)
    for name in ("batch_size", "num_lookahead_blocks"):
        with pytest.raises(ConfigError, match=f"{name}=0; it must be at least 1; raise --stream"):
            StreamConfig(**{name: 0})


FIRST = [(0, 0, at) for at in (29696, 0, 28672, 29184, 16384, 30208)]
DIGESTS = [
    *("0a95ca85", "2d0b4f65", "7d5e10a7", "b71f28e0"),
    *("c5cf2af3", "ea8e2714", "a43f8f14", "555e2fb2"),
]


def test_the_first_batches_are_frozen():
    """If these change, no earlier run can be resumed: raise `ALGORITHM` then."""
    made = MadeChunks(9, lambda index: 1 + index % 4, lambda offset: offset // 4096 == 5)
    config = replace(SMALL, batch_size=6, chunks_per_block=4)
    batches = take(made.stream(config), 4) + take(made.mixed(config), 4)
    assert rows(batches[:1]) == FIRST
    assert [batch.digest[:8] for batch in batches] == DIGESTS
