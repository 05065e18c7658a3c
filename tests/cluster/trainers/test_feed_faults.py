"""On a real Ray: readers that hang, and chunks that kill them, next to a feed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.errors import ReadersLost
from cluster.leases.lease_deadlines import LeaseConfig
from tests.cluster.data_path import WAIT, DataPath
from tests.cluster.marked import KILLS_READER, MarkedShards
from tests.cluster.trainers.test_batch_feed import STREAM, assert_same, in_process

# Each test starts readers of its own, which need the cores of the Ray for themselves.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def test_hanging_reader_is_declared_lost_and_refused_later(one_ray: None, tmp_path: Path) -> None:
    """A zombie holds crops and leases that are no longer valid."""
    shards = MarkedShards(tmp_path / "shards", 7, {})
    expected = in_process(shards.manifest, shards.job(), 20)
    leases = LeaseConfig(silence_seconds=5.0)
    with DataPath(shards.manifest, shards.job(), STREAM, leases=leases) as path:
        started = {name: path.started(name) for name in path.readers}
        with path.feed(answer_seconds=1.0) as feed:
            feed.enter(0, 1, 0)
            assert_same(feed.next(), expected[0])
            zombie = next(iter(started))
            os.kill(started[zombie].pid, signal.SIGSTOP)
            deadline = time.monotonic() + WAIT
            while zombie not in path.tell("given_up"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            path.tell("lost", zombie)
            for step in range(1, 10):
                assert_same(feed.next(), expected[step])
                path.tell("committed", step + 1)
            os.kill(started[zombie].pid, signal.SIGCONT)
            ray.get(path.readers[zombie][0].left.remote(), timeout=WAIT)
            for step in range(10, 14):
                assert_same(feed.next(), expected[step])
                path.tell("committed", step + 1)


def test_chunk_that_kills_isolated_readers_ends_the_stream_with_its_place(
    one_ray: None, tmp_path: Path
) -> None:
    """A restart loop would never end."""
    shards = MarkedShards(tmp_path / "shards", 3, {"dies": KILLS_READER})
    with DataPath(shards.manifest, shards.job(), STREAM) as path, path.feed() as feed:
        feed.enter(0, 1, 0)
        with pytest.raises(
            ReadersLost,
            match=r"4 readers died .* in isolation, on bytes 0-\d+ of \S+dies\.tar; check",
        ):
            for _ in steps_with_restarts(path, 20):
                feed.next()


def steps_with_restarts(path: DataPath, num_steps: int) -> Iterator[int]:
    """Yield steps, and replace dead readers meanwhile, as the driver would."""
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            lefts = {reader.left.remote(): name for name, (reader, _) in path.readers.items()}
            done, _ = ray.wait(list(lefts), num_returns=1, timeout=0.5)
            for ref in done:
                path.lose(lefts[ref])
                path.add_reader()

    supervisor = threading.Thread(target=replace)
    supervisor.start()
    try:
        for step in range(num_steps):
            path.tell("committed", step)
            yield step
    finally:
        ended.set()
        supervisor.join()
