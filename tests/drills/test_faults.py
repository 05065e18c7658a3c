"""Hundreds of random schedules of faults, on an S3 server and on web servers: exact, or refused.

Every schedule is a seed. What was injected and how it ended is printed at the end of each test.
"""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from shards.disk_cache import CacheConfig
from shards.errors import ShardUnreadable
from shards.listing import list_shards
from shards.retrying import RetryConfig
from shards.sources import RangeReader, SourceConfig
from tests.fault_proxy import LASTING, PASSING, fault_proxy
from tests.stores import connect, put_many, s3_server, use_s3, web_server

NUM_SCHEDULES = 400
NUM_THREADS = 8
SIZE = 400_000
RETRY = RetryConfig(
    num_attempts=6,
    first_wait_seconds=0.001,
    longest_wait_seconds=0.01,
    connect_timeout_seconds=10.0,
    read_timeout_seconds=0.5,
)
# What a lasting fault has to be called.
NAMES = {"new_version": "ShardChanged", "gone": "is gone", "forbidden": "was refused"}


class Schedule:
    """What happens to the requests for one shard: a pure function of the seed and their number."""

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self._storm = 0
        self.rate = self._rng.choice([0.1, 0.3, 0.6, 0.9])
        self.mean = self._rng.random() < 0.3  # whether it may end for good
        self.lasting, self.injected = None, []

    def next_fault(self):
        if self._storm:
            self._storm -= 1
            fault = self._rng.choice(["slow_down", "status_503", "status_429"])
        elif self.mean and self._rng.random() < 0.1:
            fault = self.lasting = self._rng.choice(LASTING)
        elif self._rng.random() < self.rate:
            fault = self._rng.choice(PASSING)
            self._storm = self._rng.randrange(1, 8) if fault == "slow_down" else 0
        else:
            fault = None
        self.injected.append(fault)
        return fault


def read_all(reader, shard, seed):
    """The shard in ranges of random sizes, or in one pass, or both; as (start, bytes)."""
    rng = random.Random(seed)
    if shard.whole or rng.random() < 0.3:
        start = 0
        for piece in reader.read_whole(shard):
            yield start, piece
            start += len(piece)
        return
    start = 0
    while start < shard.num_bytes:
        stop = min(start + rng.choice([1, 1000, 60_000, 200_000, SIZE]), shard.num_bytes)
        yield start, reader.read(shard, start, stop)
        start = stop


def outcome_of(reader, shard, seed, schedule, data):
    """How one schedule ended. Fails on any wrong byte, and on any wrong name."""
    got = bytearray()
    try:
        for start, piece in read_all(reader, shard, seed):
            assert start == len(got)
            got += piece
            assert got == data[: len(got)], f"wrong bytes, seed {seed}"
    except ShardUnreadable as error:
        said = f"{type(error).__name__}: {error}"
        if schedule.lasting:
            assert NAMES[schedule.lasting] in said, f"seed {seed}: {said}"
            return NAMES[schedule.lasting]
        assert type(error) is ShardUnreadable and "in 6 attempts" in said, f"seed {seed}: {said}"
        return "gave up"
    assert len(got) == len(data)
    return "exact"


def drill(proxy, shards, data, config):
    """Every schedule on its own shard, several at once; prints and returns the outcomes."""
    schedules = {f"/{shard.uri.split('/', 3)[3]}": Schedule(i) for i, shard in enumerate(shards)}
    proxy.plan = lambda path: schedules[path.removeprefix("/faulty")].next_fault()
    reader = RangeReader(config)

    def run(index):
        shard = shards[index]
        schedule = schedules[f"/{shard.uri.split('/', 3)[3]}"]
        return outcome_of(reader, shard, index, schedule, data), schedule

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        ended = list(pool.map(run, range(len(shards))))
    report(ended, reader)
    # Six faults in a row, none of which let 64 KiB through: that is giving up as promised.
    for outcome, schedule in ended:
        if outcome == "gave up":
            assert None not in schedule.injected[-6:]
    return Counter(outcome for outcome, _ in ended)


def report(ended, reader):
    faults = Counter(fault or "none" for _, schedule in ended for fault in schedule.injected)
    print(f"\n{len(ended)} schedules ended: {dict(Counter(outcome for outcome, _ in ended))}")
    print(f"requests by fault: {dict(sorted(faults.items()))}")
    print(f"counted: {reader.counters}")


@pytest.fixture(scope="module")
def data():
    return random.Random(7).randbytes(SIZE)


def enough(outcomes):
    """Most schedules end exactly, and every name was heard."""
    assert outcomes["exact"] > NUM_SCHEDULES / 2
    return {"ShardChanged", "is gone", "was refused"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_s3_behind_faults_is_exact_or_refused(data, monkeypatch, tmp_path):
    """Two weeks of a run see all of these; one wrong byte would be a wrong picture, unseen."""
    with s3_server() as address, fault_proxy(address, stall_seconds=2.0) as proxy:
        use_s3(proxy.address, monkeypatch)
        client = connect(address)
        client.create_bucket(Bucket="faulty")
        put_many("faulty", (f"{index:03d}.tar" for index in range(NUM_SCHEDULES)), data)
        client.close()
        config = SourceConfig(retry=RETRY)
        shards = list_shards("s3://faulty/*.tar", RangeReader(config).stores)
        assert enough(drill(proxy, shards, data, config))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["", "dated/", "flat/"])
def test_web_servers_behind_faults_are_exact_or_refused(data, tmp_path, place):
    """With etags, with dates alone, and without ranges: each has its own ways to be wrong."""
    (tmp_path / "shelf").mkdir()
    for index in range(NUM_SCHEDULES):
        (tmp_path / "shelf" / f"{index:03d}.tar").write_bytes(data)
    with (
        web_server(tmp_path / "shelf") as address,
        fault_proxy(address, stall_seconds=2.0) as proxy,
    ):
        cache = CacheConfig(folder=str(tmp_path / "cache"), max_bytes=20 * SIZE)
        config = SourceConfig(retry=RETRY, cache=cache)
        names = f"{address}/{place}{{000..{NUM_SCHEDULES - 1}}}.tar"
        found = list_shards(names, RangeReader(config).stores)
        assert all(shard.whole == (place == "flat/") for shard in found)
        shards = [replace(s, uri=s.uri.replace(address, proxy.address)) for s in found]
        assert enough(drill(proxy, shards, data, config))
