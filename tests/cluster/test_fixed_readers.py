"""The feed: chunks go to readers on Ray and come back whole, whatever happens to the readers."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.errors import ReadersLost
from cluster.fixed_readers import RayReaders
from cluster.session import ray_session
from shards.errors import ConfigError, ShardUnreadable
from shards.records import ChunkCrops
from shards.stream import ThreadReaders
from tests.cluster.marked import (
    DIES,
    DIES_ONCE,
    FAILS,
    KILLS_READER,
    RECIPE,
    SLEEPS,
    MarkedShards,
    build_none,
)

pytestmark = pytest.mark.ray

WAIT = 50.0  # seconds; a reader needs some to start


@dataclass
class Pool:
    """A feed of two readers, the shards it reads, and what it told."""

    shards: MarkedShards
    feed: RayReaders
    finished: list[ChunkCrops] = field(default_factory=list)
    num_lost: int = 0

    def lost(self) -> None:
        self.num_lost += 1

    def crop(self, name: str, epoch: int = 0) -> ChunkCrops:
        return self.feed.submit(self.shards.turn(name, epoch)).result(WAIT)


@pytest.fixture(scope="module")
def pool(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Readers that many tests use, since they take seconds to start."""
    marks = {"fails": FAILS, "dies_once": DIES_ONCE, "dies": DIES, "gone": 32}
    shards = MarkedShards(tmp_path_factory.mktemp("feed") / "shards", 4, marks)
    made = Pool(shards, None)  # type: ignore[arg-type]
    made.feed = RayReaders(shards.manifest, shards.job(), 2, made.finished.append, made.lost)
    with made.feed:
        yield made


def assert_same(ours: ChunkCrops, theirs: ChunkCrops, *, details: bool = True) -> None:
    assert (ours.chunk, ours.epoch) == (theirs.chunk, theirs.epoch)
    if details:
        assert ours.rejects == theirs.rejects
    assert [(r.offset, r.reason) for r in ours.rejects] == [
        (r.offset, r.reason) for r in theirs.rejects
    ]
    assert np.array_equal(ours.offsets, theirs.offsets) and np.array_equal(ours.kept, theirs.kept)
    for group, other in zip(ours.crops, theirs.crops, strict=True):
        assert np.array_equal(group, other)


def test_crops_are_those_of_one_process_whatever_the_order(pool: Pool) -> None:
    """Who crops, and when, must not show in a single pixel."""
    wanted = [(f"plain{number}", epoch) for number in range(4) for epoch in (0, 1)]
    shards = pool.shards
    with ThreadReaders(shards.manifest, shards.job(), 1) as threads:
        expected = [threads.submit(shards.turn(name, epoch)).result() for name, epoch in wanted]
    futures = [pool.feed.submit(shards.turn(name, epoch)) for name, epoch in reversed(wanted)]
    assert not wait(futures, WAIT).not_done
    for future, crops in zip(reversed(futures), expected, strict=True):
        assert_same(future.result(), crops)


def test_every_chunk_is_told_of_once_with_its_bytes(pool: Pool) -> None:
    """Metrics count what readers hand over."""
    pool.finished.clear()
    futures = [pool.feed.submit(pool.shards.turn(f"plain{n}", 5)) for n in range(4)]
    wait(futures, WAIT)
    assert len(pool.finished) == 4
    num_pictures = sum(5 + number for number in range(4))
    assert sum(crops.num_bytes for crops in pool.finished) == num_pictures * RECIPE.num_bytes
    assert all(crops.read_seconds >= 0 and crops.crop_seconds > 0 for crops in pool.finished)


def test_readers_are_processes_of_their_own_that_step_back(pool: Pool) -> None:
    """A trainer on the same machine comes first; decoding in its process would hold it up."""
    pool.crop("plain0")
    pids = pool.feed.pids()
    assert 1 <= len(pids) <= 2
    for pid in pids:
        assert psutil.Process() in psutil.Process(pid).parents()
        threads = [thread.id for thread in psutil.Process(pid).threads()]
        assert max(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads) >= 10


def test_nothing_of_a_local_ray_listens_beyond_the_loopback(pool: Pool) -> None:
    """Ray runs what it is sent; nobody outside this machine may send it anything."""
    pool.crop("plain0")
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_a_shard_that_cannot_be_read_arrives_as_our_own_error(pool: Pool) -> None:
    """The trainer must see the same error as without Ray, and the readers live on."""
    content = pool.shards.path("gone").read_bytes()
    pool.shards.path("gone").unlink()
    with pytest.raises(ShardUnreadable, match=r"gone\.tar is gone") as error:
        pool.crop("gone")
    assert type(error.value) is ShardUnreadable
    pool.shards.path("gone").write_bytes(content)
    assert pool.crop("plain1").kept.all()


def test_a_bug_in_a_reader_arrives_as_what_it_is(pool: Pool) -> None:
    """It must not look like bad data, nor be tried again for ever."""
    with pytest.raises(ValueError, match="a bug of ours"):
        pool.crop("fails")
    assert pool.crop("plain1").kept.all()


def test_a_chunk_of_a_dead_reader_goes_to_another_one(pool: Pool) -> None:
    """A lost reader costs time, never a sample."""
    before = pool.num_lost
    futures = [pool.feed.submit(pool.shards.turn(n)) for n in ("dies_once", "plain2", "plain3")]
    assert not wait(futures, WAIT).not_done
    assert [len(future.result().offsets) for future in futures] == [3, 7, 8]
    assert pool.num_lost == before + 1


@pytest.mark.timeout(120)  # two readers start anew, and a process for isolation
def test_a_picture_that_kills_readers_is_found_in_isolation_and_costs_itself_alone(
    pool: Pool,
) -> None:
    """After two readers it is alone with its decoder; its neighbours in the chunk are kept."""
    before = pool.num_lost
    poison, behind = [pool.feed.submit(pool.shards.turn(name)) for name in ("dies", "plain1")]
    found = poison.result(2 * WAIT)
    assert found.kept.tolist() == [True, False, True]
    assert [(r.reason, r.detail) for r in found.rejects] == [("kills_decoder", "died of SIGSEGV")]
    assert behind.result(WAIT).kept.all()
    # A reader that dies may take an answer along that was on its way, and then a third one dies.
    assert before + 2 <= pool.num_lost <= before + 4
    before = pool.num_lost
    known = replace(pool.shards.turn("dies"), quarantine=frozenset(found.killers))
    assert_same(pool.feed.submit(known).result(WAIT), found, details=False)
    assert pool.num_lost == before


@pytest.mark.slow
def test_a_chunk_that_kills_its_readers_in_isolation_ends_the_stream_with_its_place(
    one_ray: None, tmp_path: Path
) -> None:
    """Not a restart loop; and the chunks that waited behind it are not blamed."""
    shards = MarkedShards(tmp_path / "shards", 3, {"dies": KILLS_READER})
    lost: list[None] = []
    with RayReaders(shards.manifest, shards.job(), 1, on_lost=lambda: lost.append(None)) as feed:
        names = ("dies", "plain0", "plain1", "plain2")
        poison, *others = [feed.submit(shards.turn(name)) for name in names]
        with pytest.raises(
            ReadersLost,
            match=r"4 readers died .* in isolation, on bytes 0-\d+ of \S+dies\.tar; look",
        ):
            poison.result(300)
        for future in others:
            assert future.result(120).kept.all()
    # A reader that dies may take the answer for the chunk before along: that one dies again.
    assert 4 <= len(lost) <= 6


@pytest.mark.slow
def test_readers_that_cannot_start_end_the_stream_with_the_reason(
    one_ray: None, tmp_path: Path
) -> None:
    """A missing GPU is no bad shard; nobody may be sent to look at the data."""
    shards = MarkedShards(tmp_path / "shards", 1, {})
    job = replace(shards.job(), build_engine=partial(build_none, RECIPE))
    with RayReaders(shards.manifest, job, 1) as feed:
        with pytest.raises(ReadersLost, match=r"before they did anything .*no such engine"):
            feed.submit(shards.turn("plain0")).result(300)
        with pytest.raises(ReadersLost):
            feed.submit(shards.turn("plain0", 1)).result(1)


@pytest.mark.slow
def test_readers_for_which_there_is_no_core_hold_nothing_up(one_ray: None, tmp_path: Path) -> None:
    """More readers than cores is what an elastic cluster looks like while nodes start."""
    shards = MarkedShards(tmp_path / "shards", 4, {})
    with RayReaders(shards.manifest, shards.job(), 5) as feed:
        futures = [
            feed.submit(shards.turn(f"plain{n}", epoch)) for n in range(4) for epoch in (0, 1)
        ]
        assert not wait(futures, 120).not_done
        assert 1 <= len(feed.pids()) <= 3


@pytest.mark.slow
def test_closing_does_not_wait_for_work_under_way(one_ray: None, tmp_path: Path) -> None:
    """Ctrl-C must not wait for a picture that takes a minute."""
    shards = MarkedShards(tmp_path / "shards", 1, {"sleeps": SLEEPS})
    with RayReaders(shards.manifest, shards.job(), 1) as feed:
        feed.submit(shards.turn("plain0")).result(120)
        slow, behind = [feed.submit(shards.turn(name)) for name in ("sleeps", "plain0")]
        time.sleep(1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert slow.cancelled() and behind.cancelled()


def test_no_cluster_at_an_address_is_a_sentence() -> None:
    """Not a stack of gRPC."""
    with (
        pytest.raises(
            ConfigError, match=r"no Ray cluster answers at 'nonsense://x'.*--cluster local"
        ),
        ray_session("nonsense://x", 1, 1 << 20),
    ):
        pass
