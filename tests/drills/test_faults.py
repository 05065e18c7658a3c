"""Random schedules of faults on an S3 server and on web servers: reads are exact or refused.

Each schedule is a seed. Tests print the injected faults and the outcomes. A stream of batches that
is read through faults equals the stream without them.
"""

import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest

from shards.crops.native import NativeEngine
from shards.crops.recipe import cifar
from shards.crops.sample_cropper import CropJob
from shards.errors import ShardUnreadable
from shards.samples.admission_config import AdmissionConfig
from shards.stores.disk_cache import CacheConfig
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.retry import RetryConfig
from shards.stores.shard_listing import list_shards
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.fault_proxy import LASTING, PASSING, fault_proxy
from tests.stores import connect, put_many, s3_server, use_s3, web_server

NUM_SCHEDULES = 120
NUM_THREADS = 8
SIZE = 400_000
RETRY = RetryConfig(
    num_attempts=6,
    first_wait_seconds=0.001,
    longest_wait_seconds=0.01,
    connect_timeout_seconds=10.0,
    read_timeout_seconds=1.0,
)
PATIENT = replace(RETRY, num_attempts=30, read_timeout_seconds=0.5)
# Text in the error of a lasting fault.
NAMES = {"new_version": "ShardChanged", "gone": "is gone", "forbidden": "was refused"}


class Schedule:
    """Faults of the requests for one shard: a pure function of seed and request number."""

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self._storm = 0
        self.rate = self._rng.choice([0.1, 0.3, 0.6, 0.9])
        self.may_end = self._rng.random() < 0.3  # True if a lasting fault may occur
        self.lasting, self.injected = None, []

    def next_fault(self):
        if self._storm:
            self._storm -= 1
            fault = self._rng.choice(["slow_down", "status_503", "status_429"])
        elif self.may_end and self._rng.random() < 0.1:
            fault = self.lasting = self._rng.choice(LASTING)
        elif self._rng.random() < self.rate:
            fault = self._rng.choice(PASSING)
            self._storm = self._rng.randrange(1, 8) if fault == "slow_down" else 0
        else:
            fault = None
        self.injected.append(fault)
        return fault


def read_all(reader, shard, seed):
    """Yield (start, bytes) of a shard in ranges of random sizes, or in one pass."""
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
    """Return the outcome of one schedule. Fails on a wrong byte or a wrong error."""
    got = bytearray()
    try:
        for start, piece in read_all(reader, shard, seed):
            assert start == len(got)
            got += piece
            assert got == data[: len(got)], f"wrong bytes, seed {seed}"
    except ShardUnreadable as error:
        message = f"{type(error).__name__}: {error}"
        if schedule.lasting:
            assert NAMES[schedule.lasting] in message, f"seed {seed}: {message}"
            return NAMES[schedule.lasting]
        # Answers that ask for fewer requests come on top of the six attempts.
        attempts = re.search(r"in (\d+) attempts", message)
        assert type(error) is ShardUnreadable and attempts and int(attempts[1]) >= 6, (
            f"seed {seed}: {message}"
        )
        return "gave up"
    assert len(got) == len(data)
    return "exact"


def drill(proxy, shards, data, config):
    """Run each schedule on its own shard; print and return the outcomes."""
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
    # Six failed attempts in a row without 64 KiB of progress exhaust the retries. On a busy
    # machine the server itself may be late once.
    late = [s.injected[-6:].count(None) for outcome, s in ended if outcome == "gave up"]
    assert max(late, default=0) <= 1 and sum(late) <= 3
    return Counter(outcome for outcome, _ in ended)


def report(ended, reader):
    faults = Counter(fault or "none" for _, schedule in ended for fault in schedule.injected)
    print(f"\n{len(ended)} schedules ended: {dict(Counter(outcome for outcome, _ in ended))}")
    print(f"requests by fault: {dict(sorted(faults.items()))}")
    print(f"counted: {reader.counters}")


@pytest.fixture(scope="module")
def data():
    return random.Random(7).randbytes(SIZE)


def covers_all_outcomes(outcomes):
    """Return True if each kind of error occurred; most schedules must be exact."""
    assert outcomes["exact"] > outcomes.total() / 2
    return {"ShardChanged", "is gone", "was refused"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_reads_of_s3_through_faults_are_exact_or_refused(data, monkeypatch, tmp_path):
    """Long runs see all of these faults; a wrong byte would be a wrong image."""
    with s3_server() as address, fault_proxy(address, stall_seconds=3.0) as proxy:
        use_s3(proxy.address, monkeypatch)
        client = connect(address)
        client.create_bucket(Bucket="faulty")
        put_many("faulty", (f"{index:03d}.tar" for index in range(NUM_SCHEDULES)), data)
        client.close()
        config = SourceConfig(retry=RETRY)
        shards = list_shards("s3://faulty/*.tar", RangeReader(config).stores)
        assert covers_all_outcomes(drill(proxy, shards, data, config))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("", marks=pytest.mark.nightly),
        pytest.param("dated/", marks=pytest.mark.nightly),
        "flat/",
    ],
)
def test_reads_of_web_servers_through_faults_are_exact_or_refused(data, tmp_path, place):
    """Servers with etags, with dates only, and without ranges fail in different ways."""
    num = (
        3 * NUM_SCHEDULES if place == "flat/" else NUM_SCHEDULES
    )  # one request for each shard there
    (tmp_path / "files").mkdir()
    for index in range(num):
        (tmp_path / "files" / f"{index:03d}.tar").write_bytes(data)
    with (
        web_server(tmp_path / "files") as address,
        fault_proxy(address, stall_seconds=3.0) as proxy,
    ):
        cache = CacheConfig(folder=str(tmp_path / "cache"), max_bytes=20 * SIZE)
        config = SourceConfig(retry=RETRY, cache=cache)
        names = f"{address}/{place}{{000..{num - 1}}}.tar"
        found = list_shards(names, RangeReader(config).stores)
        assert all(shard.whole == (place == "flat/") for shard in found)
        shards = [replace(s, uri=s.uri.replace(address, proxy.address)) for s in found]
        assert covers_all_outcomes(drill(proxy, shards, data, config))


RECIPE = cifar(counts=(1, 1), sizes=(8, 4), scales=((0.2, 1.0), (0.05, 0.2)))
STREAM = StreamConfig(batch_size=16, chunk_bytes=8192, chunks_per_block=4)
NUM_BATCHES = 40


def batches_of(sources):
    """Yield batches of the shards in the bucket, read by three threads."""
    manifest = open_manifest("s3://stream/*.tar", RangeReader(sources))
    job = CropJob(
        recipe=RECIPE,
        seed=5,
        admission=AdmissionConfig(),
        build_engine=partial(NativeEngine, RECIPE),
        sources=sources,
    )
    order = build_order(manifest, STREAM, 5)
    with ThreadReaders(manifest, job, 3) as readers:
        yield from islice(BatchStream(order, STREAM, job.admission, readers.submit), NUM_BATCHES)


def is_same(one, other):
    crops = all(np.array_equal(a, b) for a, b in zip(one.crops, other.crops, strict=True))
    return crops and one.digest == other.digest and one.cursor == other.cursor


@pytest.fixture
def stream_bucket(shards_folder, monkeypatch):
    """Address of an S3 server with the shards of the drills."""
    with s3_server() as address:
        use_s3(address, monkeypatch)
        client = connect(address)
        client.create_bucket(Bucket="stream")
        for path in sorted(shards_folder.glob("*.tar")):
            client.put_object(Bucket="stream", Key=path.name, Body=path.read_bytes())
        client.close()
        yield address


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stream_through_faults_equals_the_stream_without(
    stream_bucket, monkeypatch, tmp_path, share
):
    """The order of samples would depend on the network."""
    expected = list(batches_of(SourceConfig(retry=RETRY)))
    assert len(expected) == NUM_BATCHES
    for seed in range(2 + round(4 * share)):  # without and with a cache
        rng = random.Random(seed)
        cache = CacheConfig(folder=str(tmp_path / str(seed)), max_bytes=10**6)
        with fault_proxy(stream_bucket, stall_seconds=2.0) as proxy:
            proxy.plan = lambda _, rng=rng: rng.choice(PASSING) if rng.random() < 0.5 else None
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
            found = list(batches_of(SourceConfig(retry=PATIENT, cache=cache if seed % 2 else None)))
            print(f"\nseed {seed}: {dict(sorted(proxy.counts.items()))}")
            assert sum(proxy.counts.values()) > proxy.counts["none"] > 0
        assert len(found) == NUM_BATCHES and all(map(is_same, expected, found))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", LASTING)
def test_a_stream_with_a_lasting_fault_is_exact_until_it_ends(stream_bucket, monkeypatch, fault):
    """The last checkpoint before the fault would belong to another stream."""
    expected = list(batches_of(SourceConfig(retry=RETRY)))
    max_seen = 0
    for num_requests in (10, 60, 120):
        seen = []
        with fault_proxy(stream_bucket, stall_seconds=2.0) as proxy:
            plan = ["cut", None] * (num_requests // 2)
            proxy.plan = lambda _, plan=plan: plan.pop() if plan else fault
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
            with pytest.raises(ShardUnreadable) as ended:
                seen += batches_of(SourceConfig(retry=PATIENT))
        message = f"{type(ended.value).__name__}: {ended.value}"
        print(f"\n{len(seen)} batches, then {type(ended.value).__name__}: {dict(proxy.counts)}")
        assert NAMES[fault] in message, message
        assert all(map(is_same, expected, seen))
        max_seen = max(max_seen, len(seen))
    assert 0 < max_seen < NUM_BATCHES
