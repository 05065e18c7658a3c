"""Simulation of the stream with random, reproducible faults of readers.

There are no threads and no clocks. A wait for a chunk advances a small world: chunks are assigned,
finished in any order, lost with their readers, and finished twice; the number of readers changes.
The stream is the production code, on chunks made of numbers.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import count

import numpy as np
import pytest

from shards.errors import ShardUnreadable
from shards.records import Cursor, Reject, ShardInfo
from shards.samples.admission_config import AdmissionConfig
from shards.stream.batch_stream import BatchStream
from shards.stream.journal import Journal
from shards.stream.mixture import parse_weights
from shards.stream.order import Order, OrderConfig
from shards.stream.stream_config import StreamConfig

CHUNK, BYTES = 4096, 1000
LENIENT = AdmissionConfig(max_reject_fraction=1.0)


def bits(*parts):
    """Return 128 random bits that depend only on `parts`."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=16).digest(), "big")


@dataclass(slots=True, weakref_slot=True)
class Result:
    """The result of a chunk; it counts how many results are in memory."""

    world: "World"
    chunk: object
    epoch: int
    offsets: np.ndarray
    kept: np.ndarray
    rejects: tuple
    num_unselected: int
    needs_walk: bool
    crashed_images: tuple
    stream: int
    crops: tuple = ()
    num_bytes: int = BYTES
    labels: None = None

    def __del__(self):
        self.world.alive[self.stream] -= 1


class Promise:
    """A future without locks. A wait for it advances the world."""

    __slots__ = ("_callback", "_error", "_result", "_world", "turn")

    def __init__(self, world, turn):
        self._world, self.turn, self._result, self._error = world, turn, None, None

    def done(self):
        return self._result is not None or self._error is not None

    def add_done_callback(self, callback):
        self._callback = callback

    def set(self, result, error=None):
        self._result, self._error = result, error
        self._callback(self)

    def exception(self, timeout=None):  # noqa: ARG002
        for num_steps in count():
            if self.done():
                return self._error
            assert num_steps < 5000, "deadlock: the awaited chunk never arrives"
            self._world.advance()

    def result(self):
        if self.exception() is not None:
            raise self._error
        return self._result


@dataclass
class World:
    """Chunks with content that is a pure function of their position, and unreliable readers."""

    seed: int
    rng: random.Random = field(init=False)
    alive: Counter = field(default_factory=Counter)  # results in memory, by stream
    num_streams: int = 0
    num_faults: Counter = field(default_factory=Counter)

    def __post_init__(self):
        rng = self.rng = random.Random(self.seed)
        self.is_mixture, self.has_subset, self.has_leaps = (rng.random() < 0.5 for _ in range(3))
        num_sources = rng.randint(2, 3) if self.is_mixture else 1
        self.shards = tuple(
            ShardInfo(f"{source}/{number}.tar", rng.randint(1, 4 * CHUNK), "v", source,
                      rng.random() < 0.1)
            for source in range(num_sources)
            for number in range(rng.randint(1, 3))
        )  # fmt: skip
        self.config = OrderConfig(
            seed=self.seed, chunk_bytes=CHUNK, chunks_per_block=rng.randint(1, 5)
        )
        self.journal = Journal("m", "")
        self.contents = {}
        self.change_weights(0)
        self.broken_block = rng.randint(1, 9) if rng.random() < 0.2 else None
        self.batch_size = rng.randint(1, max(1, min(9, self.min_in_a_pass())))
        self.start()

    def change_weights(self, block):
        """Set new weights from this block on, and the order that follows."""
        if self.is_mixture:
            shares = [self.rng.randint(1, 4) for _ in range(self.shards[-1].source + 1)]
            self.journal.add_weights(parse_weights(shares), block)
        self.order = Order(self.shards, "m", self.config, self.journal.weights)
        self.order.block = lru_cache(maxsize=None)(self.order.block)
        self.order.mix = lru_cache(maxsize=None)(self.order.mix)
        # Irregular shards that the abandoned stream found stay known.
        self.inherited = [entry for entry in self.journal.entries if entry.kind == "irregular"]

    def min_in_a_pass(self):
        chunks = [self.order.chunk(index) for index in range(self.order.num_chunks)]
        return sum(min(len(self.content(c, w)[0]) for w in (False, True)) for c in chunks)

    def content(self, chunk, walked):
        """Return offsets of kept samples, of rejects, number outside the subset, and the flags."""
        walked = walked and self.has_leaps
        place = (chunk.shard, chunk.start, walked)
        if place not in self.contents:
            self.contents[place] = self.invent(chunk, walked)
        return self.contents[place]

    def invent(self, chunk, walked):
        number = bits(self.seed, chunk.shard, chunk.start, walked)
        kept, rejected, unselected, dice = (number >> shift & 0xFF for shift in (0, 8, 16, 24))
        first = chunk.start == 0  # so that no pass is empty
        num_kept, num_rejected = max(kept % 5, first), max(0, rejected % 6 - 2)
        offsets = [chunk.start + 512 * i for i in range(num_kept + num_rejected)]
        self_shuffle = random.Random(number)
        self_shuffle.shuffle(offsets)
        return (
            frozenset(offsets[:num_kept]),
            frozenset(offsets[num_kept:]),
            unselected % 3 if self.has_subset else 0,
            self.has_leaps and not walked and dice < 30,
            (f"image{dice % 3}",) if 100 < dice < 120 else (),
        )

    def make(self, turn):
        chunk = turn.chunk
        kept, rejected, num_unselected, needs_walk, crashed = self.content(chunk, chunk.walked)
        offsets = sorted(kept | rejected)
        self.alive[self.num_streams] += 1
        return Result(
            self,
            chunk,
            turn.epoch,
            np.array(offsets, dtype=np.int64),
            np.array([offset in kept for offset in offsets], dtype=bool),
            tuple(Reject(chunk.shard, o, "", "empty") for o in sorted(rejected)),
            num_unselected,
            needs_walk,
            tuple(image for image in crashed if image not in turn.quarantine),
            self.num_streams,
        )

    # The readers.

    def start(self):
        self.queue, self.held, self.zombies = [], [], []
        self.num_readers = self.rng.randint(1, 4)
        self.num_streams += 1

    def submit(self, turn):
        promise = Promise(self, turn)
        self.queue.append(promise)
        return promise

    def advance(self):
        rng = self.rng
        dice = rng.random()
        if dice < 0.45 and self.queue and len(self.held) < 2 * self.num_readers:
            self.held.append(self.queue.pop(0))
        elif dice < 0.85 and self.held:
            self.finish(self.held.pop(rng.randrange(len(self.held))))
        elif dice < 0.90 and self.held:  # a reader is lost, or seems to be
            lost = self.held.pop(rng.randrange(len(self.held)))
            self.queue.insert(0, lost)
            self.zombies.append(lost.turn)
            self.num_faults["lost"] += 1
        elif dice < 0.93 and self.zombies:
            late = self.zombies.pop(rng.randrange(len(self.zombies)))
            self.make(late)  # finished again, the result is dropped
            self.num_faults["late"] += 1
        elif dice < 0.96:
            self.num_readers = rng.randint(1, 4)

    def finish(self, promise):
        broken = [] if self.broken_block is None else self.order.block(self.broken_block)
        if replace(promise.turn, chunk=replace(promise.turn.chunk, walked=False)) in broken:
            promise.set(None, ShardUnreadable("broken"))
        else:
            promise.set(self.make(promise.turn))

    # The expected batches.

    def reference(self):
        """Yield (epoch, shard, offset) of all samples, computed in the plainest way."""
        irregular = set()
        for block in count():
            if block == self.broken_block:
                return
            irregular |= {entry.value for entry in self.inherited if entry.block <= block}
            raw, learned = [], set()
            for turn in self.order.block(block):
                chunk = turn.chunk
                kept, rejected, _, needs_walk, _ = self.content(chunk, chunk.shard in irregular)
                places = sorted(kept | rejected)
                raw += [(turn.epoch, chunk.shard, at) if at in kept else None for at in places]
                learned |= {chunk.shard} if needs_walk else set()
            irregular |= learned
            for place in self.order.mix(block, len(raw)):
                if raw[place] is not None:
                    yield raw[place]

    def batches(self, num):
        """Return the first `num` reference batches, fewer if a block is broken."""
        samples, found = self.reference(), []
        while len(found) < num:
            batch = [row for _, row in zip(range(self.batch_size), samples, strict=False)]
            if len(batch) < self.batch_size:
                break
            found.append(batch)
        return found

    def stream(self, cursor):
        """Return a stream from a cursor on, with random bounds; earlier requests are dropped."""
        self.start()
        blocks = self.rng.choice([1, 1, 2, 4])
        self.max_bytes = self.rng.choice([0, 3, 8, 100]) * BYTES
        config = StreamConfig(
            batch_size=self.batch_size, max_bytes=self.max_bytes, num_lookahead_blocks=blocks
        )
        return iter(
            BatchStream(self.order, config, LENIENT, self.submit_within, cursor, self.journal)
        )

    def submit_within(self, turn):
        """Submit, and check that results held and in progress stay below the bound."""
        promise = self.submit(turn)
        in_progress = sum(not p.done() for p in (*self.queue, *self.held))
        first_block = self.config.chunks_per_block * BYTES
        dropped = 0
        if any(entry.kind == "irregular" for entry in self.journal.entries):
            dropped = in_progress  # requested twice: before and after the discovery
        held = (self.alive[self.num_streams] + in_progress - dropped) * BYTES
        assert held <= max(self.max_bytes, first_block), "more bytes are held than allowed"
        return promise


def rows(batch):
    places = zip(batch.epochs.tolist(), batch.ids.tolist(), strict=True)
    return [(epoch, *place) for epoch, place in places]


def run(seed, num_batches=10):
    """Run a stream with kills and resumes at random steps. Returns the counts of faults."""
    world = World(seed)
    rng = world.rng
    expected = world.batches(num_batches)
    saved = [(0, None)]
    step, stream = 0, world.stream(None)
    while step < num_batches:
        for _ in range(rng.randint(0, 6)):
            world.advance()
        if rng.random() < 0.08:
            stream.close()
            del stream
            step, place = rng.choice(saved)
            cursor = None if place is None else Cursor.from_json(json.loads(place))
            world.num_faults["resumed"] += 1
            if world.is_mixture and cursor is not None and rng.random() < 0.3:
                world.change_weights(cursor.block + 1)
                expected = world.batches(num_batches)
                saved = [entry for entry in saved if entry[0] <= step]
                world.num_faults["weights"] += 1
            stream = world.stream(cursor)
            continue
        try:
            batch = next(stream)
        except ShardUnreadable:
            assert step == len(expected), "an error was raised too early"
            assert world.broken_block is not None
            world.broken_block = None  # repaired and resumed
            expected = world.batches(num_batches)
            world.num_faults["broken"] += 1
            step, place = rng.choice(saved)
            stream = world.stream(None if place is None else Cursor.from_json(json.loads(place)))
            continue
        assert step < len(expected), "a batch came from a broken block"
        assert rows(batch) == expected[step]
        step += 1
        saved.append((step, json.dumps(batch.cursor.to_json())))
    world.num_faults["irregular"] += sum(e.kind == "irregular" for e in world.journal.entries)
    world.num_faults["quarantine"] += sum(e.kind == "quarantine" for e in world.journal.entries)
    return world.num_faults


FAULTS = {"lost", "late", "resumed", "weights", "broken", "irregular", "quarantine"}


def test_random_runs_equal_the_reference(share):
    """A run would lose or double a sample, deadlock, or hold too many bytes."""
    faults = Counter()
    for seed in range(round(500 * share)):
        faults.update(run(seed))
    assert set(+faults) == FAULTS


@pytest.mark.slow
def test_many_random_runs_equal_the_reference(share):
    """A fault of one run in ten thousand would happen every week somewhere."""
    faults = Counter()
    num = round(20_000 * share)
    for seed in range(1000, 1000 + num):
        faults.update(run(seed))
    assert all(faults[name] > num / 20 for name in FAULTS)
