"""Reads of shards from folders, S3, the web and the Hub: exact, or refused with the right error."""

import itertools
import os
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards.errors import ShardChanged, ShardUnreadable
from shards.records import ShardInfo
from shards.stores.fsspec_store import FsspecStore
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.request_counters import RequestCounters, TransportCounts
from shards.stores.request_limit import RequestLimiter
from shards.stores.retry import RetryConfig, RetryingClient
from shards.stores.shard_listing import list_shards
from tests.fault_proxy import PASSING, RETRY_AFTER_SECONDS, fault_proxy
from tests.hub import DATASET
from tests.stores import BusyHandler, tar_bytes, web_server

# Long timeouts for a busy machine, and no waits between attempts.
QUICK = SourceConfig(
    retry=RetryConfig(
        num_attempts=3,
        first_wait_seconds=0.0,
        longest_wait_seconds=0.0,
        connect_timeout_seconds=5.0,
        read_timeout_seconds=5.0,
    )
)
HASTY = SourceConfig(
    retry=RetryConfig(
        num_attempts=4,
        first_wait_seconds=0.001,
        longest_wait_seconds=0.01,
        connect_timeout_seconds=5.0,
        read_timeout_seconds=0.6,
    )
)


def list_with(reader, pattern):
    return list_shards(pattern, reader.stores)


@pytest.fixture(scope="module")
def s3_reader(s3_client):
    """Reader with an S3 client, for tests that also use `s3`."""
    return RangeReader(QUICK)


def check_ranges(reader, shard, data):
    for start, stop in [(0, 1), (0, len(data)), (511, 2000), (7, 7), (len(data) - 3, len(data))]:
        assert reader.read(shard, start, stop) == data[start:stop]
    assert b"".join(reader.read_whole(shard)) == data


def test_ranges_of_a_file_are_exact(folder):
    """A range that is off by one byte damages each header. A date of 1970 is valid: tools that
    make repeatable archives write it."""
    os.utime(folder / "05.tar", (0, 0))
    (shard,) = list_shards(f"{folder}/05.tar")
    check_ranges(RangeReader(), shard, (folder / "05.tar").read_bytes())
    assert RangeReader().can_range(shard)


def test_a_changed_or_deleted_file_is_refused_at_once(folder):
    """An epoch would mix two versions; retries would hide a deleted file."""
    shards = list_shards(f"{folder}/{{05,06}}.tar")
    reader = RangeReader(SourceConfig(retry=RetryConfig(first_wait_seconds=5)))
    reader.read(shards[0], 0, 512)
    (folder / "05.tar").write_bytes(tar_bytes(6, b"y"))
    (folder / "06.tar").unlink()
    started = time.monotonic()
    with pytest.raises(ShardChanged, match=r"05\.tar was written to since .*: start a new run"):
        reader.read(shards[0], 0, 512)
    with pytest.raises(ShardUnreadable, match=r"06\.tar is gone; .* put it back, or start a new"):
        reader.read(shards[1], 0, 512)
    assert time.monotonic() - started < 2


class FlakyStore(MemoryFileSystem):
    """Files in memory, read through a connection that fails as `plan` says."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    plan, num_reads = [], 0

    def cat_file(self, path, start=None, end=None, **kwargs):
        type(self).num_reads += 1
        data = super().cat_file(path, start=start, end=end, **kwargs)
        fault = self.plan.pop(0) if self.plan else None
        if isinstance(fault, BaseException):
            raise fault
        return data[:fault]


@pytest.fixture
def flaky():
    """Shard in a store that can fail."""
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    FlakyStore.store.clear()
    FlakyStore.plan.clear()
    FlakyStore.num_reads = 0
    fsspec.filesystem("flaky").pipe_file("flaky://data/0.tar", tar_bytes())
    (shard,) = list_shards("flaky://data/0.tar")
    assert shard.uri == "flaky://data/0.tar"
    return shard


class LibraryError(Exception):
    """Error of an unknown library."""


@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        ([ConnectionResetError("reset by peer")], {"reset": 1}),
        ([TimeoutError(), LibraryError("503 slow down")], {"timeout": 1, "other": 1}),
        ([100], {"short": 1}),
        ([0, 511], {"short": 2}),
    ],
)
def test_failed_and_short_reads_are_repeated(flaky, plan, kinds):
    """A retry at a wrong offset would lose data silently."""
    FlakyStore.plan.extend(plan)
    reader = RangeReader(QUICK)
    assert reader.read(flaky, 512, 2048) == tar_bytes()[512:2048]
    assert FlakyStore.num_reads == len(plan) + 1
    [(bucket, found)] = reader.counters.buckets.items()
    assert (bucket, found.requests, found.bytes) == ("flaky://data", len(plan) + 1, 1536)
    assert found.errors == kinds and found.seconds > 0
    assert reader.counters == TransportCounts(
        requests=len(plan) + 1, bytes=1536, retries=kinds, buckets={bucket: found}
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([OSError("disk on fire")] * 3, r"in 3 attempts \(disk on fire\)"),
        ([LibraryError("503 slow down")] * 3, r"in 3 attempts \(503 slow down\)"),
        ([10, 20, 30], r"in 3 attempts \(60 bytes were sent instead of 1536\)"),
    ],
)
def test_the_last_attempt_raises_shard_unreadable(flaky, plan, message):
    """A store that is down must end the run with its name."""
    FlakyStore.plan.extend(plan)
    found = rf"flaky://data/0\.tar could not be read at bytes 512-2048 {message}"
    with pytest.raises(ShardUnreadable, match=found + "; check the network .* start the same"):
        RangeReader(QUICK).read(flaky, 512, 2048)
    assert FlakyStore.num_reads == 3


def test_a_store_that_ignores_ranges_is_refused_at_once(flaky, monkeypatch):
    """Each chunk would download the whole shard five times."""
    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(FlakyStore, "cat_file", lambda self, path, **_: whole(self, path))
    with pytest.raises(ShardUnreadable, match=r"was sent whole for a range .*: copy the shards"):
        RangeReader(QUICK).read(flaky, 512, 2048)


def test_a_changed_object_of_a_plain_fsspec_store_is_refused(flaky):
    """fsspec does not compare versions, so the version is requested after each read."""
    reader = RangeReader(QUICK)
    assert reader.read(flaky, 0, 512) == tar_bytes()[:512]
    fsspec.filesystem("flaky").pipe_file("flaky://data/0.tar", tar_bytes(9))
    with pytest.raises(ShardChanged, match=r"flaky://data/0\.tar was written to"):
        reader.read(flaky, 0, 512)


def test_ranges_of_an_object_are_exact_for_many_threads(s3, s3_reader):
    """A connection that mixes up answers would give images to other labels."""
    (shard,) = list_with(s3_reader, "s3://shelf/set/07.tar")
    check_ranges(s3_reader, shard, tar_bytes(8))
    assert s3_reader.can_range(shard)
    shards = list_with(s3_reader, "s3://shelf/set")
    places = [(i % 12, 512 * (i % 7), 512 * (i % 7) + 300 + i) for i in range(30)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda place: s3_reader.read(shards[place[0]], *place[1:]), places)
        for (index, start, stop), data in zip(places, found, strict=True):
            assert data == tar_bytes(index + 1)[start:stop]


@pytest.mark.parametrize("place", ["", "dated/", "bare/", "closed/", "packed/"])
def test_shards_of_a_web_server_are_read_in_ranges(folder, place):
    """Servers name versions by etag, by date, or not at all."""
    reader = RangeReader(QUICK)
    with web_server(folder) as address:
        (shard,) = list_with(reader, f"{address}/{place}05.tar")
        check_ranges(reader, shard, (folder / "05.tar").read_bytes())
        (folder / "05.tar").write_bytes(tar_bytes(30, b"y"))
        os.utime(folder / "05.tar", (1, 1))
        with pytest.raises(ShardChanged, match=r"05\.tar was written to"):
            reader.read(shard, 700, 2000)
        (folder / "05.tar").unlink()
        with pytest.raises(ShardUnreadable, match=r"05\.tar is gone"):
            reader.read(shard, 700, 2000)


def test_a_server_without_ranges_is_read_sequentially(folder, monkeypatch):
    """Each piece would send the whole shard again; a range in the middle must be refused."""
    monkeypatch.setattr("shards.stores.range_reader._PIECE_BYTES", 1000)
    reader = RangeReader(QUICK)
    with web_server(folder) as address:
        (shard,) = list_with(reader, f"{address}/flat/11.tar")
        assert not reader.can_range(shard)
        before = reader.counters.requests
        pieces = list(reader.read_whole(shard))
        assert b"".join(pieces) == tar_bytes(12) and len(pieces) > 9
        assert reader.counters.requests - before == len(pieces)  # on one connection
        assert next(reader.read_whole(shard)) == tar_bytes(12)[:1000]
        assert reader.read(shard, 0, 700) == tar_bytes(12)[:700]
        with pytest.raises(ShardUnreadable, match=r"the whole shard was sent for a range"):
            reader.read(shard, 700, 2000)


@pytest.fixture(scope="module")
def data():
    """Shard of several pieces; all parts differ."""
    return random.Random(0).randbytes(600_000)


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Address of a web server with that shard."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "0.tar").write_bytes(data)
    with web_server(folder) as address:
        yield address


@pytest.fixture(scope="module")
def web_proxy(files):
    """Proxy before that web server."""
    with fault_proxy(files, stall_seconds=3.0) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def s3_proxy(s3_client, s3_address, data):
    """Proxy before the S3 server, and a reader that uses it."""
    s3_client.create_bucket(Bucket="faulty")
    s3_client.put_object(Bucket="faulty", Key="0.tar", Body=data)
    with fault_proxy(s3_address, stall_seconds=3.0) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        reader = RangeReader(HASTY)
        yield proxy, reader, list_with(reader, "s3://faulty/0.tar")[0]


@pytest.fixture(params=["http", "s3"])
def faulty(request, web_proxy):
    """(proxy, reader, shard) for each kind of store; tests set `proxy.plan`."""
    if request.param == "s3":
        proxy, reader, shard = request.getfixturevalue("s3_proxy")
    else:
        proxy, reader = web_proxy, RangeReader(HASTY)
        (shard,) = list_with(reader, f"{proxy.address}/0.tar")
    proxy.lasting.clear()
    yield proxy, reader, shard
    proxy.plan = lambda _: None
    proxy.lasting.clear()


KINDS = {
    "refuse": "reset", "reset": "reset", "cut": "reset", "short": "short",
    "short_200": "wrong_range", "whole_200": "wrong_range", "other_range": "wrong_range",
    "no_range": "wrong_range", "stall": "timeout", "stall_before": "timeout", "drip": None,
    "status_408": "timeout", "status_429": "throttled", "status_500": "server",
    "status_502": "server", "status_503": "throttled", "status_504": "server",
    "retry_after": "throttled", "slow_down": "throttled",
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_each_transient_fault_is_survived_and_counted(faulty, data, fault):
    """Ordinary network faults would end a run, or give wrong bytes."""
    proxy, reader, shard = faulty
    plan = [fault]
    proxy.plan = lambda _: plan.pop() if plan else None
    before = reader.counters
    assert reader.read(shard, 1000, 200_000) == data[1000:200_000]
    assert plan == []
    after = reader.counters
    seen = {k: n - before.retries.get(k, 0) for k, n in after.retries.items()}
    counted = {k for k, n in seen.items() if n}
    # A busy machine may time out in addition. A closed kept-alive connection is replaced by the
    # client library, without an error.
    assert counted | {"timeout"} == {KINDS[fault] or "timeout", "timeout"} or fault == "refuse"
    assert KINDS[fault] is None or seen.get(KINDS[fault], 0) >= (fault != "refuse")
    assert after.throttles - before.throttles == (KINDS[fault] == "throttled")
    assert after.bytes - before.bytes == 199_000


@pytest.mark.parametrize("fault", ["reset", "cut", "short"])
def test_a_broken_body_is_resumed_at_its_last_byte(faulty, data, fault):
    """A large range on a bad line would never finish."""
    proxy, reader, shard = faulty
    plan = [fault] * 4
    proxy.plan = lambda _: plan.pop() if plan else None
    proxy.ranges.clear()
    assert reader.read(shard, 0, 262_144) == data[:262_144]
    firsts, lasts = zip(*proxy.ranges, strict=True)
    assert firsts == tuple(sorted(firsts)) and firsts[0] == 0 and len(set(firsts)) > 2
    assert set(lasts) == {262_143}


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("new_version", ShardChanged, "was written to since the shards were listed; .* start a n"),
        ("gone", ShardUnreadable, r"0\.tar is gone; it was there when .*; put it back, or start"),
        ("forbidden", ShardUnreadable, r"access to .*0\.tar was refused \(.*\); .* renew them"),
    ],
)
def test_permanent_faults_are_not_retried(faulty, fault, error, message):
    """Retries would hide the fault; a resumed read would mix two objects."""
    proxy, reader, shard = faulty
    plan = [fault, "reset"]
    proxy.plan = lambda _: plan.pop() if plan else None
    before = sum(reader.counters.retries.values())
    with pytest.raises(error, match=message) as raised:
        reader.read(shard, 0, 200_000)
    assert type(raised.value) is error
    assert sum(reader.counters.retries.values()) - before in (1, 2)  # the reset; a busy machine


def test_retry_after_is_respected(faulty, data):
    """A store throttles clients that return too early for longer."""
    proxy, reader, shard = faulty
    plan = ["retry_after"]
    proxy.plan = lambda _: plan.pop() if plan else None
    started = time.monotonic()
    assert reader.read(shard, 0, 1000) == data[:1000]
    assert time.monotonic() - started >= RETRY_AFTER_SECONDS


def test_a_sequential_read_survives_faults(tmp_path, data, monkeypatch):
    """Without ranges a broken body must be skipped to its last byte, not appended to."""
    monkeypatch.setattr("shards.stores.range_reader._PIECE_BYTES", 50_000)
    (tmp_path / "0.tar").write_bytes(data)
    faults = itertools.cycle(["reset", "cut", "stall", "short", "status_503", "refuse", None])
    with web_server(tmp_path) as address, fault_proxy(address, lambda _: next(faults)) as proxy:
        # On a busy machine an answer without a fault may be too late, too.
        reader = RangeReader(replace(HASTY, retry=replace(HASTY.retry, num_attempts=12)))
        (shard,) = list_with(reader, f"{address}/flat/0.tar")
        proxied = replace(shard, uri=f"{proxy.address}/flat/0.tar")
        assert b"".join(reader.read_whole(proxied)) == data
        assert set(reader.counters.retries) >= {"reset", "timeout", "short", "throttled"}


def test_many_threads_adapt_to_the_capacity_of_a_store(tmp_path, data):
    """Without a shared limit most requests would be refused."""
    (tmp_path / "0.tar").write_bytes(data)
    retry = replace(
        QUICK.retry, num_attempts=99, first_wait_seconds=0.001, longest_wait_seconds=0.001
    )
    BusyHandler.num_refused = 0
    with web_server(tmp_path, BusyHandler) as address:
        reader = RangeReader(SourceConfig(retry=retry))
        (shard,) = list_with(reader, f"{address}/0.tar")
        with ThreadPoolExecutor(16) as pool:
            starts = range(0, 100_000, 500)
            found = list(pool.map(lambda a: reader.read(shard, a, a + 500), starts))
    assert b"".join(found) == data[:100_000]
    assert reader.counters.throttles == BusyHandler.num_refused
    # Threads without a shared limit are refused 95 to 175 times, those with one 20 to 40 times; a
    # limit that does not fall after a refusal stays at its start of 16.
    assert 0 < BusyHandler.num_refused < len(found) / 2
    assert reader.stores.open(shard.uri).client._limiter.limit < 12


def test_plain_fsspec_stores_have_timeouts(web_proxy, data):
    """Google's and Azure's libraries would wait for minutes."""
    counters = RequestCounters()
    client = RetryingClient(HASTY.retry, RequestLimiter(), counters, "s3://b")
    filesystem = fsspec.filesystem("http", skip_instance_cache=True)
    retry = replace(HASTY.retry, connect_timeout_seconds=0.1)
    store = FsspecStore(filesystem, web_proxy.address, retry, client)
    shard = ShardInfo(f"{web_proxy.address}/0.tar", len(data), f'"{HASTY}"')
    plan = ["stall_before"]
    web_proxy.plan = lambda _: plan.pop() if plan else None
    sink = bytearray()
    with pytest.raises(ShardChanged):  # the version is requested after the bytes
        client.call(lambda: store.fetch(shard, 5, 1000, sink))
    assert counters.snapshot().retries == {"timeout": 1} and plan == []
    web_proxy.plan = lambda _: None


def test_shards_of_the_hub_are_listed_and_read(fake_hub):
    """A large part of all public data is on the Hub."""
    reader = RangeReader(QUICK)
    shards = list_with(reader, f"hf://{DATASET}/set")
    assert [shard.uri for shard in shards] == [f"hf://{DATASET}/set/{i}.tar" for i in range(10)]
    for pattern in ("set/*.tar", "set/{0..9}.tar"):
        assert list_with(reader, f"hf://{DATASET}/{pattern}") == shards
    assert list_with(reader, f"hf://{DATASET}/set/3.tar") == [shards[3]]
    (small,) = list_with(reader, f"hf://{DATASET}/small.tar")
    assert reader.read(small, 700, 2000) == tar_bytes()[700:2000]
    assert reader.read(shards[3], 700, 2000) == tar_bytes(5)[700:2000]
    fake_hub.requests.clear()
    assert b"".join(reader.read_whole(shards[4])) == tar_bytes(6)
    assert len(fake_hub.requests) == 2  # the Hub, and the address that it redirects to


def test_a_shard_of_the_hub_that_was_replaced_or_deleted_is_refused(fake_hub):
    """Data sets are corrected while others train on them."""
    reader = RangeReader(QUICK)
    shard, small = list_with(reader, f"hf://{DATASET}/{{set/3,small}}.tar")
    fake_hub.files["set/3.tar"] = tar_bytes(5, b"y")
    fake_hub.files["small.tar"] = tar_bytes(3, b"y")
    for changed in (shard, small):
        with pytest.raises(ShardChanged, match=r"\.tar was written to"):
            reader.read(changed, 700, 2000)
    del fake_hub.files["set/3.tar"]
    with pytest.raises(ShardUnreadable, match=r"set/3\.tar is gone"):
        reader.read(shard, 700, 2000)


@pytest.mark.parametrize("tag", ["", "another form"])
def test_the_version_is_requested_if_a_response_of_the_hub_has_none(fake_hub, tag, monkeypatch):
    """If the Hub changes the form of its tags, shards must not count as changed, and changed ones
    must still be found."""
    fake_hub.tag = lambda _: tag
    reader = RangeReader(QUICK)
    (shard,) = list_with(reader, f"hf://{DATASET}/set/3.tar")
    fake_hub.requests.clear()
    for _ in range(3):
        assert reader.read(shard, 700, 2000) == tar_bytes(5)[700:2000]
    assert len([path for path in fake_hub.requests if "paths-info" in path]) == 1
    monkeypatch.setattr("shards.stores.hub_store._CHECK_SECONDS", 0.0)
    fake_hub.files["set/3.tar"] = tar_bytes(5, b"y")
    with pytest.raises(ShardChanged, match=r"\.tar was written to"):
        reader.read(shard, 700, 2000)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_reader_works_after_pickle_and_fork(files, data):
    """DataLoader workers are forks of a process with open connections."""
    reader = RangeReader(QUICK)
    (shard,) = list_with(reader, f"{files}/0.tar")
    assert reader.read(shard, 0, 100) == data[:100]
    assert pickle.loads(pickle.dumps(reader)).config == reader.config
    assert pickle.loads(pickle.dumps(reader.counters)) == reader.counters
    child = os.fork()
    if child == 0:
        os._exit(reader.read(shard, 5, 1000) != data[5:1000])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
