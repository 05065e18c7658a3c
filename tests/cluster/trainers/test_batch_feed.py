"""On a real Ray: plans, readers and feeds give the batches of one process after any loss."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import ray

from shards.crops.sample_cropper import CropJob
from shards.errors import ShardUnreadable, StreamStopped
from shards.records import CropBatch
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest import Manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.cluster.data_path import WAIT, DataPath
from tests.cluster.marked import RECIPE, MarkedShards

# Each worker of the ordinary tests would start a Ray.
pytestmark = [pytest.mark.ray, pytest.mark.slow]

BATCH = 12
STREAM = StreamConfig(batch_size=BATCH, chunk_bytes=1 << 20, chunks_per_block=3)


def in_process(manifest: Manifest, job: CropJob, num_batches: int) -> list[CropBatch]:
    """Return the batches of one process."""
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
class SharedPath:
    """A data path that tests share, since readers start slowly, and the expected batches."""

    shards: MarkedShards
    path: DataPath
    expected: list[CropBatch]
    term: int = 1

    def restart(self) -> None:
        """Plan from the first step again, in a new term, with the same readers."""
        self.term += 1
        ray.get(self.path.control.begin.remote(term=self.term), timeout=WAIT)


@pytest.fixture(scope="module")
def running(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedPath]:
    shards = MarkedShards(tmp_path_factory.mktemp("feed") / "shards", 7, {})
    expected = in_process(shards.manifest, shards.job(), 60)
    with DataPath(shards.manifest, shards.job(), STREAM) as path:
        yield SharedPath(shards, path, expected)


def test_ranks_get_their_rows_of_the_batches_of_one_process(running: SharedPath) -> None:
    """The number of ranks and readers must change no pixel."""
    path, expected = running.path, running.expected
    with path.feed("t0") as first, path.feed("t1") as second:
        for rank, feed in enumerate((first, second)):
            feed.enter(rank, 2, 0)
        for step in range(4):
            assert_same(first.next(), expected[step], 0, 2)
            assert_same(second.next(), expected[step], 1, 2)
            path.tell("committed", step)
        # The second rank is lost; the step is trained again with all rows.
        first.enter(0, 1, 3)
        for step in range(3, 8):
            assert_same(first.next(), expected[step])
            path.tell("committed", step + 1)
        assert first.status()["lost_calls"] == 0
    path.wait(lambda status: status["num_held"] < 40)


def test_received_rows_are_not_requested_again(running: SharedPath) -> None:
    """After the loss of another rank, this one would wait for rows that it has."""
    running.restart()
    with running.path.feed() as feed:
        feed.enter(0, 1, 0)
        assert_same(feed.next(), running.expected[0])
        wait_until(lambda: feed.status()["batches_ready"] >= 2)
        feed.enter(0, 1, 0)
        for step in range(4):
            assert_same(feed.next(), running.expected[step])
        assert feed.status()["taken_bytes"] == 4 * BATCH * RECIPE.num_bytes


def test_a_batch_that_was_looked_at_stays_the_next_one(running: SharedPath) -> None:
    """A trainer copies it to its GPU during a step; a new generation must not lose its rows."""
    running.restart()
    with running.path.feed() as feed:
        feed.enter(0, 1, 0)
        feed.next()
        wait_until(lambda: feed.status()["batches_ready"] == 3)
        ahead = feed.peek()
        assert ahead is not None
        assert_same(ahead, running.expected[1])
        feed.interrupt()
        assert feed.peek() is None
        feed.enter(0, 1, 1)
        assert feed.next().crops is ahead.crops
        feed.enter(1, 2, 2)
        assert_same(feed.next(), running.expected[2], 1, 2)


def test_killed_reader_costs_no_row(running: SharedPath) -> None:
    """Trainers already wait for rows that it held."""
    running.restart()
    path, expected = running.path, running.expected
    started = {name: path.started(name) for name in path.readers}
    with path.feed(max_bytes=1) as feed:
        feed.enter(0, 1, 0)
        assert_same(feed.next(), expected[0])
        status = path.wait(lambda status: status["planned"] == 4)
        [(victim, _)] = status["held_by"].most_common(1)
        os.kill(started[victim].pid, signal.SIGKILL)
        path.lose(victim)
        for step in range(1, 10):
            assert_same(feed.next(), expected[step])
            path.tell("committed", step + 1)
    assert path.tell("status")["counters"].recropped > 0
    path.add_reader()


def test_new_control_continues_at_the_step_of_the_trainers(running: SharedPath) -> None:
    """Its tasks have other numbers, so crops of old tasks must not be mistaken for theirs."""
    running.restart()
    path, expected = running.path, running.expected
    with path.feed() as feed:
        feed.enter(0, 1, 0)
        for step in range(3):
            assert_same(feed.next(), expected[step])
        running.term += 1
        path.replace_control(term=running.term, cursor=expected[2].cursor, step=3)
        for step in range(3, 9):
            assert_same(feed.next(), expected[step])
            path.tell("committed", step + 1)


def test_drained_reader_leaves_after_its_crops_were_used(
    running: SharedPath,
) -> None:
    """Giving a node back must lose no crops."""
    running.restart()
    path, expected = running.path, running.expected
    leaver = path.add_reader()
    path.started(leaver)
    with path.feed() as feed:
        feed.enter(0, 1, 0)
        assert_same(feed.next(), expected[0])
        left = path.readers[leaver][0].left.remote()
        path.tell("drain", leaver)
        for step in range(1, 12):
            assert_same(feed.next(), expected[step])
            path.tell("committed", step + 1)
        ray.get(left, timeout=WAIT)
        assert feed.status()["lost_calls"] == 0
    path.lose(leaver)
    assert path.tell("status")["counters"].recropped == 0


def test_waiting_feed_can_be_interrupted(running: SharedPath) -> None:
    """A trainer whose generation is over may be waiting for data."""
    running.restart()
    with running.path.feed() as feed:
        feed.enter(0, 1, 50)  # no step is committed, so this is never planned
        threading.Timer(0.3, feed.interrupt).start()
        with pytest.raises(StreamStopped):
            feed.next()
        feed.enter(0, 1, 0)
        assert_same(feed.next(), running.expected[0])


def test_unreadable_shard_raises_our_own_error(running: SharedPath) -> None:
    """The trainer must get the error of a run without Ray, after the batches before it."""
    path = running.shards.path("plain3")
    content, times = path.read_bytes(), path.stat()
    path.unlink()
    try:
        running.restart()
        with running.path.feed() as feed:
            feed.enter(0, 1, 0)
            with pytest.raises(ShardUnreadable, match=r"plain3\.tar is gone") as error:
                for step in range(20):
                    assert_same(feed.next(), running.expected[step])
                    running.path.tell("committed", step + 1)
            assert type(error.value) is ShardUnreadable
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_readers_are_processes_of_low_priority(running: SharedPath) -> None:
    """Decoding must not slow down a trainer on the same machine."""
    for name in running.path.readers:
        pid = running.path.started(name).pid
        assert psutil.Process() in psutil.Process(pid).parents()
        threads = [thread.id for thread in psutil.Process(pid).threads()]
        assert max(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads) >= 10


def test_local_ray_listens_on_the_loopback_only(running: SharedPath) -> None:
    """Ray runs any code that it is sent."""
    assert running.path.readers
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
