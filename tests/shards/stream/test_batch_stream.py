"""The stream: every sample once an epoch, the same from anywhere, however the work comes back."""

import json
import os
import random
import shutil
import tarfile
import threading
import weakref
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from typing import get_args

import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import cifar
from shards.crops.sample_cropper import CropJob
from shards.errors import BudgetExceeded, ConfigError, CursorMismatch, ShardUnreadable
from shards.records import Chunk, ChunkCrops, Cursor, Reason, Reject, Sample, ShardInfo
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order, check_bytes
from shards.stream.journal import Journal
from shards.stream.manifest_listing import open_manifest
from shards.stream.mixture import parse_weights
from shards.stream.order import Order, OrderConfig
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from shards.tars.chunk_reader import read_chunk

RECIPE = cifar(counts=(1, 2), sizes=(8, 4), scales=((0.2, 1.0), (0.05, 0.2)))
JOB = CropJob(
    recipe=RECIPE, seed=5, admission=AdmissionConfig(), build_engine=partial(OpenCVEngine, RECIPE)
)
LENIENT = AdmissionConfig(max_reject_fraction=1.0)
SMALL = StreamConfig(batch_size=1, chunk_bytes=4096, chunks_per_block=5, max_bytes=60_000)


class Data:
    """Shards opened for a stream; `submit` crops at once and remembers."""

    def __init__(self, folder):
        self.manifest = open_manifest(str(folder), RangeReader())
        self.cropper = ChunkCropper(JOB, RangeReader())
        self.crops = {}

    def crop(self, turn):
        if turn not in self.crops:
            self.crops[turn] = self.cropper.crop(self.manifest.shards[turn.chunk.shard], turn)
        return self.crops[turn]

    def submit(self, turn):
        future = Future()
        future.set_result(self.crop(turn))
        return future

    def order(self, config=SMALL, seed=5):
        return build_order(self.manifest, config, seed)

    def ids(self):
        """(shard, offset) of every sample."""
        return [
            (shard, item.offset)
            for shard, info in enumerate(self.manifest.shards)
            for item in read_chunk(RangeReader(), info, Chunk(shard, 0, info.num_bytes)).found
            if isinstance(item, Sample)
        ]

    def stream(self, config=SMALL, *, cursor=None, submit=None, admission=LENIENT):
        return BatchStream(self.order(config), config, admission, submit or self.submit, cursor)


@pytest.fixture(scope="module")
def data(synthetic_shards):
    return Data(synthetic_shards)


@pytest.fixture
def own(synthetic_shards, tmp_path):
    """Shards of this test alone, which it may break; files keep their times."""
    return shutil.copytree(synthetic_shards, tmp_path / "own")


def rows(batches):
    """(epoch, shard, offset) of every sample in order."""
    return [
        (epoch, *place)
        for batch in batches
        for epoch, place in zip(batch.epochs.tolist(), batch.ids.tolist(), strict=True)
    ]


def same(one, other):
    """Whether two batches are the same in everything that is trained on, and go on alike."""
    return (
        one.cursor == other.cursor
        and one.digest == other.digest
        and all(np.array_equal(a, b) for a, b in zip(one.crops, other.crops, strict=True))
    )


def take(stream, num):
    return list(islice(stream, num))


def test_every_sample_comes_exactly_once_an_epoch(data):
    """The first promise of an epoch."""
    seen = rows(take(data.stream(replace(SMALL, batch_size=8)), 36))
    expected = data.ids()
    assert len(expected) == 96
    for epoch in range(3):
        assert sorted(row[1:] for row in seen if row[0] == epoch) == expected
    orders = [[row[1:] for row in seen if row[0] == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != sorted(orders[2])


def test_resuming_at_any_cursor_continues_as_if_nothing_had_happened(data):
    """After a kill at any moment the run must go on with the same batches, to the pixel."""
    whole = take(data.stream(), 200)
    assert {batch.epochs[0] for batch in whole} == {0, 1, 2}
    for index in range(150):
        saved = Cursor.from_json(json.loads(json.dumps(whole[index].cursor.to_json())))
        again = take(data.stream(cursor=saved), 12)
        assert all(map(same, again, whole[index + 1 :]))
    tail = take(data.stream(cursor=whole[40].cursor), 159)
    assert all(same(one, other) for one, other in zip(tail, whole[41:], strict=True))


@pytest.mark.parametrize("batch_size", [3, 7, 32, 50])
def test_the_size_of_a_batch_changes_no_order(data, batch_size):
    """The samples are in one line; batches are cut from it, across blocks and epochs."""
    alone = rows(take(data.stream(), 210))
    config = replace(SMALL, batch_size=batch_size)
    batches = take(data.stream(config), 200 // batch_size)
    assert rows(batches) == alone[: len(rows(batches))]
    crossing = [batch for batch in batches if len(set(batch.epochs.tolist())) > 1]
    assert bool(crossing) == (96 % batch_size != 0)
    assert all(len(batch) == batch_size for batch in batches)


@pytest.mark.parametrize("num_readers", [1, 2, 3])
def test_any_number_of_reader_threads_gives_the_same_batches(data, num_readers):
    """Order is data: it must not depend on who reads."""
    config = replace(SMALL, batch_size=16)
    expected = take(data.stream(config), 15)
    told = []
    with ThreadReaders(data.manifest, JOB, num_readers, told.append) as readers:
        batches = take(data.stream(config, submit=readers.submit), 15)
    assert all(same(one, other) for one, other in zip(batches, expected, strict=True))
    assert sum(len(result.offsets) for result in told) >= 15 * 16


@contextmanager
def shuffled(crop, seed):
    """A `submit` whose futures are fulfilled by another thread, in any order."""
    rng = random.Random(seed)
    waiting, changed, closed = [], threading.Condition(), threading.Event()

    def fulfil():
        while True:
            with changed:
                changed.wait_for(lambda: waiting or closed.is_set())
                if closed.is_set():
                    return
                task = waiting.pop(rng.randrange(len(waiting)))
            future, turn = task
            try:
                future.set_result(crop(turn))
            except Exception as error:
                future.set_exception(error)

    def submit(turn):
        future = Future()
        with changed:
            waiting.append((future, turn))
            changed.notify()
        return future

    thread = threading.Thread(target=fulfil, daemon=True)
    thread.start()
    try:
        yield submit
    finally:
        with changed:
            closed.set()
            changed.notify()
        thread.join()


@pytest.mark.parametrize("seed", range(5))
def test_work_that_comes_back_in_any_order_gives_the_same_batches(data, seed):
    """Readers on many machines finish in any order."""
    config = replace(SMALL, batch_size=16, num_lookahead_blocks=1 + seed)
    expected = take(data.stream(config), 15)
    with shuffled(data.crop, seed) as submit:
        batches = take(data.stream(config, submit=submit), 15)
    assert all(same(one, other) for one, other in zip(batches, expected, strict=True))


def test_what_is_read_ahead_changes_nothing(data):
    """Bounds on memory are the machine's matter, the order is the data's."""
    expected = [batch.digest for batch in take(data.stream(replace(SMALL, batch_size=16)), 12)]
    for max_bytes in (1, 50_000, 1 << 30):
        for num_lookahead_blocks in (1, 4):
            config = replace(
                SMALL,
                batch_size=16,
                max_bytes=max_bytes,
                num_lookahead_blocks=num_lookahead_blocks,
            )
            assert [batch.digest for batch in take(data.stream(config), 12)] == expected


def test_seed_settings_and_batch_size_each_change_the_digests(data):
    """A log of digests could not prove that two runs were the same."""
    config = replace(SMALL, batch_size=16)
    variants = [
        (config, 5),
        (config, 6),
        (replace(config, chunk_bytes=8192), 5),
        (replace(config, chunks_per_block=6), 5),
        (replace(config, batch_size=8), 5),
    ]
    firsts = set()
    for variant, seed in variants:
        order = data.order(variant, seed)
        firsts.add(next(iter(BatchStream(order, variant, LENIENT, data.submit))).digest)
    assert len(firsts) == len(variants)


def break_images(folder, places):
    """Overwrite the images at `places` (shard, offset) with noise; length and time stay."""
    names = sorted(os.listdir(folder))
    shards = [name for name in names if name.endswith(".tar")]
    for shard, offset in places:
        path = folder / shards[shard]
        times = path.stat()
        with tarfile.open(path) as tar:
            images = [member for member in tar if member.name.endswith("jpg")]
        at = min(m.offset_data for m in images if m.offset >= offset)
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(random.Random(offset).randbytes(100))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_reject_moves_nobody_else(own):
    """One broken image must not shift everything behind it."""
    before = take(Data(own).stream(), 200)
    victims = [tuple(batch.ids[0].tolist()) for batch in (before[0], before[17], before[95])]
    break_images(own, victims)
    after = take(Data(own).stream(), 190)
    kept = [batch for batch in before if tuple(batch.ids[0].tolist()) not in victims]
    for one, other in zip(after, kept, strict=False):
        assert one.digest == other.digest
        assert np.array_equal(one.crops[0], other.crops[0])
        place, expected = one.cursor, other.cursor
        assert (place.block, place.slot) == (expected.block, expected.slot)


def test_rejects_are_handed_over_and_counted_once(own):
    """Nothing disappears uncounted, and a resume counts nothing twice."""
    before = take(Data(own).stream(), 96)
    break_images(own, [tuple(batch.ids[0].tolist()) for batch in before[10:60:5]])
    data = Data(own)
    config = replace(SMALL, batch_size=4)
    batches = take(data.stream(config), 60)
    total = Counter()
    for batch in batches:
        total.update(reject.reason for reject in batch.rejects)
        assert batch.cursor.reject_reasons == total
        assert batch.cursor.num_rejects == total.total()
    assert total.total() >= 20 and batches[-1].cursor.num_samples == 240
    for index in range(0, 58, 3):
        again = next(iter(data.stream(config, cursor=batches[index].cursor)))
        assert same(again, batches[index + 1]) and again.rejects == batches[index + 1].rejects


class Made:
    """Chunks made of nothing, with sizes and rejects at will, and a count of the bytes alive."""

    def __init__(self, num_chunks, samples=4, sample_bytes=3 * 16 * 16, reject=lambda _: False):
        shard = ShardInfo("made.tar", num_chunks * 4096, "v")
        self.samples, self.side, self.reject = samples, int((sample_bytes / 3) ** 0.5), reject
        self.shards, self.num_chunks = (shard,), num_chunks
        self.alive = 0
        self.lock = threading.Lock()

    def crop(self, turn):
        chunk, epoch = turn.chunk, turn.epoch
        index = chunk.start // 4096
        num = self.samples(index) if callable(self.samples) else self.samples
        offsets = chunk.start + 512 * np.arange(num, dtype=np.int64)
        kept = np.full(num, not self.reject(index))
        crops = np.zeros((int(kept.sum()), 1, self.side, self.side, 3), dtype=np.uint8)
        rejects = [Reject(0, int(at), "k", "not_an_image") for at in offsets[~kept]]
        with self.lock:
            self.alive += crops.nbytes
        weakref.finalize(crops, self.release, crops.nbytes)
        return ChunkCrops(chunk, epoch, offsets, kept, (crops,), tuple(rejects))

    def release(self, num_bytes):
        with self.lock:
            self.alive -= num_bytes

    def submit(self, turn):
        future = Future()
        future.set_result(self.crop(turn))
        return future

    def stream(self, config, admission=LENIENT, submit=None):
        order = OrderConfig(seed=0, chunk_bytes=4096, chunks_per_block=config.chunks_per_block)
        return BatchStream(
            Order(self.shards, "made", order), config, admission, submit or self.submit
        )


@pytest.mark.parametrize("max_bytes", [0, 30_000, 100_000])
@pytest.mark.parametrize(("per_block", "batch_size"), [(1, 1), (4, 10), (8, 3), (3, 50)])
def test_bytes_held_and_under_way_stay_below_the_bound(max_bytes, per_block, batch_size):
    """Crops of one epoch do not fit into any memory: only what the next batch needs may exceed."""
    made = Made(64)
    chunk_bytes = 4 * 3 * 16 * 16
    under_way, highest = [], 0
    lock = threading.Lock()

    def crop(turn):
        nonlocal highest
        result = made.crop(turn)
        with lock:
            under_way.remove(turn)
            highest = max(highest, made.alive + len(under_way) * chunk_bytes)
        return result

    with shuffled(crop, seed=per_block) as finish:

        def submit(turn):
            with lock:
                under_way.append(turn)
            return finish(turn)

        config = StreamConfig(
            batch_size=batch_size,
            chunk_bytes=4096,
            chunks_per_block=per_block,
            max_bytes=max_bytes,
            num_lookahead_blocks=6,
        )
        assert len(rows(take(made.stream(config, submit=submit), 400 // batch_size))) > 350
    # The worker may still hold the chunk that it has just handed over.
    assert highest <= max(max_bytes, per_block * chunk_bytes) + 2 * chunk_bytes


def test_blocks_smaller_than_a_batch_and_rejects_stop_nothing():
    """Waiting for room that only a full batch would make is a deadlock."""
    made = Made(64, samples=1, reject=lambda index: index % 8 != 0)
    config = StreamConfig(
        batch_size=8, chunk_bytes=4096, chunks_per_block=1, max_bytes=1, num_lookahead_blocks=1
    )
    with shuffled(made.crop, seed=1) as submit:
        batches = take(made.stream(config, submit=submit), 10)
    assert [batch.cursor.num_rejects for batch in batches][-1] >= 9 * 56
    assert {len(set(batch.ids[:, 1].tolist())) for batch in batches} == {8}


def test_readers_are_kept_busy_while_nothing_is_taken():
    """Without work ahead, every reader would wait for the trainer."""
    asked = []
    made = Made(64)

    def submit(turn):
        asked.append(turn)
        return made.submit(turn)

    config = StreamConfig(batch_size=1, chunk_bytes=4096, chunks_per_block=4, max_bytes=60_000)
    next(iter(made.stream(config, submit=submit)))
    assert 4 < len(asked) <= 60_000 // (4 * 768)


def test_a_pass_smaller_than_a_batch_is_refused_with_the_largest_that_fits():
    """The same images would be in one batch twice."""
    made = Made(5)
    config = StreamConfig(batch_size=21, chunk_bytes=4096, chunks_per_block=2)
    with pytest.raises(ConfigError, match=r"batch_size=21, .* holds only 20 .* of at most 20"):
        next(iter(made.stream(config)))
    assert len(take(made.stream(replace(config, batch_size=20)), 3)) == 3


def mixed(made, config, admission=LENIENT):
    """Two shards of `made`, mixed one to one."""
    shards = (made.shards[0], replace(made.shards[0], uri="other.tar", source=1))
    order = OrderConfig(seed=0, chunk_bytes=4096, chunks_per_block=config.chunks_per_block)
    weights = [(0, parse_weights([1, 1]))]
    return BatchStream(Order(shards, "made", order, weights), config, admission, made.submit)


def test_a_source_of_rejects_only_ends_a_mixture():
    """Its weight would be asked for and never given."""
    made = Made(6)
    crop = made.crop
    made.crop = lambda turn: Made(6, reject=lambda _: turn.chunk.shard == 1).crop(turn)
    config = StreamConfig(batch_size=2, chunk_bytes=4096, chunks_per_block=4)
    with pytest.raises(BudgetExceeded, match="every sample of the data of one of the sources was"):
        take(mixed(made, config), 100)
    made.crop = crop
    assert len(take(mixed(made, replace(config, batch_size=30)), 20)) == 20  # more than a pass has


def test_data_of_rejects_only_ends_with_the_table_of_reasons():
    """A stream without an image would read for ever."""
    made = Made(6, reject=lambda _: True)
    config = StreamConfig(batch_size=2, chunk_bytes=4096, chunks_per_block=2)
    with pytest.raises(BudgetExceeded, match=r"every sample .*\n  not_an_image +24$") as caught:
        next(iter(made.stream(config)))
    assert caught.value.reasons == {"not_an_image": 24}


def test_the_budget_is_spent_after_its_probation():
    """A few bad samples at the start end no run; a bucket of error pages does."""
    made = Made(64, reject=lambda index: index % 2 == 0)
    config = StreamConfig(batch_size=2, chunk_bytes=4096, chunks_per_block=4)
    strict = AdmissionConfig(max_reject_fraction=0.4, probation=100)
    got = 0
    with pytest.raises(BudgetExceeded, match=r"samples were rejected, more than 40%; .* raise"):
        for batch in made.stream(config, strict):
            got += len(batch)
    assert 20 <= got <= 80
    lenient = AdmissionConfig(max_reject_fraction=0.75, probation=100)
    assert len(take(made.stream(config, lenient), 200)) == 200


def test_the_budget_of_a_resumed_run_knows_what_was_spent():
    """A run that is restarted every hour would never see that its data is bad."""
    made = Made(64, reject=lambda index: index % 2 == 0)
    config = StreamConfig(batch_size=2, chunk_bytes=4096, chunks_per_block=4)
    cursor = take(made.stream(config), 30)[-1].cursor
    strict = AdmissionConfig(max_reject_fraction=0.1, probation=100)
    order = Order(made.shards, "made", OrderConfig(seed=0, chunk_bytes=4096, chunks_per_block=4))
    with pytest.raises(BudgetExceeded):
        take(BatchStream(order, config, strict, made.submit, cursor), 20)


def test_a_shard_that_cannot_be_read_ends_the_stream_when_its_turn_comes(own):
    """Batches before it are the same as ever; nothing is skipped without a word."""
    data = Data(own)
    expected = take(data.stream(), 96)
    data.crops.clear()
    gone = data.manifest.shards[1]
    os.unlink(gone.uri)
    batches = []
    with ThreadReaders(data.manifest, JOB, 2) as readers:
        with pytest.raises(ShardUnreadable, match="is gone") as caught:
            batches.extend(data.stream(submit=readers.submit))
        assert gone.uri in str(caught.value)
    assert all(same(one, other) for one, other in zip(batches, expected, strict=False))
    assert len(batches) < 40 and not any(batch.ids[0, 0] == 1 for batch in batches)


def test_an_error_ahead_waits_for_its_turn(data):
    """What was read too early must not decide which batch is the last."""

    def submit(turn):
        if turn.epoch == 1:
            future = Future()
            future.set_exception(ShardUnreadable("later"))
            return future
        return data.submit(turn)

    batches = []
    stream = data.stream(replace(SMALL, num_lookahead_blocks=50), submit=submit)
    with pytest.raises(ShardUnreadable, match="later"):
        for batch in stream:
            batches.append(batch)
    assert sorted(row[1:] for row in rows(batches)) == data.ids()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest": "other"}, r"other data \(manifest other, now .*\); resume with the --data"),
        ({"order": "other"}, r"another order \(digest other, now .*\); keep seed, chunk_bytes"),
        ({"block": -1}, r"block -1, slot 0; both are at least 0, so the file is damaged: rem"),
        ({"slot": -1}, r"slot -1; .* damaged: remove this checkpoint to go on from the one"),
    ],
)
def test_a_cursor_of_something_else_is_refused(data, change, message):
    """Going on in other data at the old place is neither a resume nor a new run."""
    order = data.order()
    cursor = Cursor(manifest=order.manifest, order=order.digest)
    with pytest.raises(CursorMismatch, match=message):
        data.stream(cursor=replace(cursor, **change))


def test_a_slot_that_its_block_does_not_have_is_refused(data):
    """A damaged file must not silently become the start of the next block."""
    order = data.order()
    cursor = Cursor(manifest=order.manifest, order=order.digest, block=3, slot=10**6)
    with pytest.raises(
        CursorMismatch, match=r"slot 1000000 of block 3, which has \d+; remove this"
    ):
        next(iter(data.stream(cursor=cursor)))


def test_the_first_batch_needs_the_chunks_of_one_block_and_no_others(data):
    """A fresh or resumed run must not read for an hour before it begins."""
    order = data.order()
    for cursor in [None, *(batch.cursor for batch in take(data.stream(), 60))]:
        block = order.block(cursor.block if cursor else 0)

        def submit(turn, block=block):
            return data.submit(turn) if turn in block else Future()  # never done

        assert len(next(iter(data.stream(cursor=cursor, submit=submit)))) == 1


def test_a_cursor_stays_below_two_kilobytes(data):
    """All that a loader saves has to fit into the checkpoint's header."""
    order = data.order()
    cursor = Cursor(
        manifest=order.manifest,
        order=order.digest,
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


def test_the_order_is_worked_out_from_the_data(data):
    """What can be computed is not asked for."""
    order = data.order(StreamConfig(batch_size=8))
    assert order.config == OrderConfig(seed=5, chunk_bytes=1 << 18, chunks_per_block=8)
    config = StreamConfig(batch_size=8, chunk_bytes=4096, chunks_per_block=3)
    assert data.order(config).config == OrderConfig(seed=5, chunk_bytes=4096, chunks_per_block=3)


def test_a_bound_that_holds_not_even_one_block_is_refused_before_any_work(data):
    """The bound would be broken silently, or the machine killed after an hour."""
    config = replace(SMALL, max_bytes=1000)
    with pytest.raises(ConfigError, match=r"max_bytes=1000, but one block of 5 chunks .*; raise"):
        check_bytes(data.manifest, data.order(), config, RECIPE.num_bytes)
    check_bytes(data.manifest, data.order(), SMALL, RECIPE.num_bytes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; it must be at least 1"),
        ({"num_lookahead_blocks": 0}, "num_lookahead_blocks=0; it must be at least 1"),
    ],
)
def test_streams_that_cannot_work_are_refused(fields, message):
    """A batch of nothing never fills."""
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**fields)


def test_threads_that_were_closed_leave_no_work_behind(data):
    """A run that ends must not read on."""
    before = threading.active_count()
    with ThreadReaders(data.manifest, JOB, 2) as readers:
        futures = [readers.submit(turn) for turn in data.order().block(0)]
    assert all(future.done() for future in futures) and threading.active_count() == before


def test_an_image_that_killed_a_decoder_is_known_to_the_chunks_behind_it():
    """Each of its copies would cost a process again."""
    made, turns = Made(16), []
    crop = made.crop
    made.crop = lambda turn: replace(crop(turn), crashed_images=("d" * 32,) * (turn.chunk.start == 0))

    def submit(turn):
        turns.append(turn)
        return made.submit(turn)

    order = OrderConfig(seed=0, chunk_bytes=4096, chunks_per_block=2)
    order = Order(made.shards, "made", order)
    journal = Journal(order.manifest, order.digest)
    config = StreamConfig(batch_size=4, max_bytes=1)
    take(BatchStream(order, config, LENIENT, submit, journal=journal), 60)
    (entry,) = journal.entries
    assert (entry.kind, entry.value) == ("quarantine", "d" * 32)
    place = next(i for i, turn in enumerate(turns) if turn.chunk.start == 0)
    assert not any(turn.quarantine for turn in turns[: place + 1])
    assert all(turn.quarantine == {"d" * 32} for turn in turns[place + 3 :])


FIRST = [(0, 0, at) for at in (29696, 0, 28672, 29184, 16384, 30208)]
DIGESTS = [
    *("0a95ca85", "2d0b4f65", "7d5e10a7", "b71f28e0"),
    *("c5cf2af3", "ea8e2714", "a43f8f14", "555e2fb2"),
]


def test_the_first_batches_are_frozen():
    """A version in which these differ resumes no run of this one: raise `ALGORITHM` then."""
    made = Made(9, samples=lambda index: 1 + index % 4, reject=lambda index: index == 5)
    config = StreamConfig(batch_size=6, chunk_bytes=4096, chunks_per_block=4)
    batches = take(made.stream(config), 4) + take(mixed(made, config), 4)
    assert rows(batches[:1]) == FIRST
    assert [batch.digest[:8] for batch in batches] == DIGESTS


def test_places_in_the_stream_only_go_forward(data):
    """The newest cursor is the furthest one."""
    places = [
        (batch.cursor.block, batch.cursor.slot)
        for batch in take(data.stream(replace(SMALL, batch_size=5)), 40)
    ]
    assert all(one < other for one, other in pairwise(places))


def test_pools_and_streams_may_be_shared_by_two_runs(data):
    """A stream holds no position but its own."""
    config = replace(SMALL, batch_size=16)
    with ThreadPoolExecutor(2) as pool:

        def submit(turn):
            return pool.submit(data.crop, turn)

        one, other = (iter(data.stream(config, submit=submit)) for _ in range(2))
        assert all(same(next(one), next(other)) for _ in range(8))
