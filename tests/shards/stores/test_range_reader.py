"""Reads of shards, from folders, S3 and the web: exact, or refused with the right name."""

import itertools
import os
import pickle
import random
import socket
import time
import traceback
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
from tests.stores import BusyHandler, put_many, tar_bytes, web_server

# Patient enough for a machine with other things to do, and over in no time.
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
        read_timeout_seconds=0.8,
    )
)


def list_with(reader, pattern):
    return list_shards(pattern, reader.stores)


@pytest.fixture(scope="module")
def s3_reader(s3_client):
    """A reader that has an S3 client already, for tests that ask for `s3` too."""
    return RangeReader(QUICK)


def test_ranges_are_exactly_the_bytes(folder):
    """One byte off and every header is damage."""
    (shard,) = list_shards(f"{folder}/05.tar")
    data = (folder / "05.tar").read_bytes()
    reader = RangeReader()
    for start, stop in [(0, 1), (0, len(data)), (511, 513), (7, 7), (len(data) - 3, len(data))]:
        assert reader.read(shard, start, stop) == data[start:stop]
    assert b"".join(reader.read_whole(shard)) == data
    assert reader.can_range(shard)


def test_a_file_that_was_written_to_is_refused(folder):
    """Half of an epoch from one version and half from another is no data set."""
    (shard,) = list_shards(f"{folder}/05.tar")
    reader = RangeReader()
    reader.read(shard, 0, 512)
    (folder / "05.tar").write_bytes(tar_bytes(6, b"y"))
    with pytest.raises(ShardChanged, match=r"05\.tar was written to since .*: start a new run"):
        reader.read(shard, 0, 512)


def test_a_file_of_the_year_1970_is_a_file_too(folder):
    """Tools that make archives repeatable set every date to zero."""
    os.utime(folder / "05.tar", (0, 0))
    (shard,) = list_shards(f"{folder}/05.tar")
    assert RangeReader().read(shard, 0, 512) == tar_bytes(6)[:512]


def test_a_file_that_is_gone_is_refused_at_once(folder):
    """Nothing brings a deleted file back: retries would only hide what happened."""
    (shard,) = list_shards(f"{folder}/05.tar")
    (folder / "05.tar").unlink()
    started = time.monotonic()
    patient = SourceConfig(retry=RetryConfig(first_wait_seconds=5))
    with pytest.raises(ShardUnreadable, match=r"05\.tar is gone; .* put it back, or start a new"):
        RangeReader(patient).read(shard, 0, 512)
    assert time.monotonic() - started < 2


class FlakyStore(MemoryFileSystem):
    """Files in memory, behind a connection that fails as often as `plan` says."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    plan, num_reads = [], 0

    def cat_file(self, path, start=None, end=None, **kwargs):
        type(self).num_reads += 1
        data = super().cat_file(path, start=start, end=end, **kwargs)
        trouble = self.plan.pop(0) if self.plan else None
        if isinstance(trouble, BaseException):
            raise trouble
        return data[:trouble]


@pytest.fixture
def flaky():
    """A shard in a store whose next reads can be made to fail."""
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    FlakyStore.store.clear()
    FlakyStore.plan.clear()
    FlakyStore.num_reads = 0
    fsspec.filesystem("flaky").pipe_file("flaky://data/0.tar", tar_bytes())
    (shard,) = list_shards("flaky://data/0.tar")
    assert shard.uri == "flaky://data/0.tar"
    return shard


class LibraryError(Exception):
    """What a store's own library raises: no OSError, and nobody knows its name here."""


@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        ([ConnectionResetError("reset by peer")], {"reset": 1}),
        ([TimeoutError(), LibraryError("503 slow down")], {"timeout": 1, "other": 1}),
        ([100], {"short": 1}),
        ([0, 511], {"short": 2}),
    ],
)
def test_reads_that_fail_or_come_short_are_made_again_in_full(flaky, plan, kinds):
    """A retry that goes on from a wrong place loses data without a word."""
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
        ([10, 20, 30], r"in 3 attempts \(60 bytes came instead of 1536\)"),
    ],
)
def test_after_the_last_attempt_the_shard_is_unreadable(flaky, plan, message):
    """A store that stays away must end the run with a name, not with silence."""
    FlakyStore.plan.extend(plan)
    found = rf"flaky://data/0\.tar could not be read at bytes 512-2048 {message}"
    with pytest.raises(ShardUnreadable, match=found + "; check the network .* start the same"):
        RangeReader(QUICK).read(flaky, 512, 2048)
    assert FlakyStore.num_reads == 3


def test_a_store_that_sends_the_whole_shard_for_a_range_is_refused_at_once(flaky, monkeypatch):
    """Every chunk would cost a whole shard, five times over."""
    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(FlakyStore, "cat_file", lambda self, path, **_: whole(self, path))
    with pytest.raises(ShardUnreadable, match=r"came whole when a part .*: copy the shards"):
        RangeReader(QUICK).read(flaky, 512, 2048)


def test_a_changed_object_of_any_store_is_refused(flaky):
    """Stores that compare no version with the read are asked for it behind every read."""
    reader = RangeReader(QUICK)
    assert reader.read(flaky, 0, 512) == tar_bytes()[:512]
    fsspec.filesystem("flaky").pipe_file("flaky://data/0.tar", tar_bytes(9))
    with pytest.raises(ShardChanged, match=r"flaky://data/0\.tar was written to"):
        reader.read(flaky, 0, 512)


def test_ranges_of_an_object_are_exactly_the_bytes(s3, s3_reader):
    """What is true of files has to be true of objects."""
    (shard,) = list_with(s3_reader, "s3://shelf/set/07.tar")
    data = tar_bytes(8)
    for start, stop in [(0, 1), (0, len(data)), (511, 2000), (7, 7), (len(data) - 3, len(data))]:
        assert s3_reader.read(shard, start, stop) == data[start:stop]
    assert b"".join(s3_reader.read_whole(shard)) == data
    assert s3_reader.can_range(shard)


def test_threads_read_objects_beside_each_other(s3, s3_reader):
    """Readers are threads: a connection that mixes up answers gives images to other labels."""
    shards = list_with(s3_reader, "s3://shelf/set")
    places = [(i % 12, 512 * (i % 7), 512 * (i % 7) + 300 + i) for i in range(60)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda place: s3_reader.read(shards[place[0]], *place[1:]), places)
        for (index, start, stop), data in zip(places, found, strict=True):
            assert data == tar_bytes(index + 1)[start:stop]


def test_an_object_that_was_replaced_or_deleted_is_refused(s3, s3_reader):
    """Somebody will tidy up a bucket while a run of two weeks reads it."""
    s3.create_bucket(Bucket="tidied")
    put_many("tidied", ["3.tar", "4.tar"], tar_bytes(4))
    shards = list_with(s3_reader, "s3://tidied")
    for shard in shards:
        s3_reader.read(shard, 0, 512)
    s3.put_object(Bucket="tidied", Key="3.tar", Body=tar_bytes(4, b"y"))
    s3.delete_object(Bucket="tidied", Key="4.tar")
    with pytest.raises(ShardChanged, match=r"s3://tidied/3\.tar was written to"):
        s3_reader.read(shards[0], 0, 512)
    with pytest.raises(ShardUnreadable, match=r"s3://tidied/4\.tar is gone"):
        s3_reader.read(shards[1], 0, 512)


@pytest.mark.parametrize("place", ["", "dated/", "bare/", "closed/", "packed/"])
def test_shards_of_a_web_server_are_read_in_ranges(folder, place):
    """Servers differ in what they tell of a version."""
    reader = RangeReader(QUICK)
    with web_server(folder) as address:
        (shard,) = list_with(reader, f"{address}/{place}05.tar")
        data = (folder / "05.tar").read_bytes()
        for start, stop in [(0, 1), (0, len(data)), (511, 2000), (len(data) - 3, len(data))]:
            assert reader.read(shard, start, stop) == data[start:stop]
        assert b"".join(reader.read_whole(shard)) == data
        (folder / "05.tar").write_bytes(tar_bytes(30, b"y"))
        os.utime(folder / "05.tar", (1, 1))
        with pytest.raises(ShardChanged, match=r"05\.tar was written to"):
            reader.read(shard, 700, 2000)
        (folder / "05.tar").unlink()
        with pytest.raises(ShardUnreadable, match=r"05\.tar is gone"):
            reader.read(shard, 700, 2000)


def test_a_server_without_ranges_is_read_from_the_first_byte_to_the_last(folder, monkeypatch):
    """Then the chunk is the whole shard; a part of it costs everything, and is refused."""
    monkeypatch.setattr("shards.stores.range_reader._PIECE_BYTES", 1000)
    reader = RangeReader(QUICK)
    with web_server(folder) as address:
        (shard,) = list_with(reader, f"{address}/flat/11.tar")
        assert not reader.can_range(shard)
        before = reader.counters.requests
        pieces = list(reader.read_whole(shard))
        assert b"".join(pieces) == tar_bytes(12) and len(pieces) > 9
        assert reader.counters.requests - before == len(pieces)  # turns on one connection
        assert next(reader.read_whole(shard)) == tar_bytes(12)[:1000]
        assert reader.read(shard, 0, 700) == tar_bytes(12)[:700]
        with pytest.raises(ShardUnreadable, match=r"the whole shard came when a part was asked"):
            reader.read(shard, 700, 2000)


@pytest.fixture(scope="module")
def data():
    """A shard that takes more than one piece, and in which no part is like another."""
    return random.Random(0).randbytes(600_000)


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """A folder with that shard, and a web server of it."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "0.tar").write_bytes(data)
    with web_server(folder) as address:
        yield address


@pytest.fixture(scope="module")
def web_proxy(files):
    """A proxy in front of that web server."""
    with fault_proxy(files, stall_seconds=6.0) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def s3_proxy(s3_client, s3_address, data):
    """A proxy in front of the S3 server, and a reader of it."""
    s3_client.create_bucket(Bucket="faulty")
    s3_client.put_object(Bucket="faulty", Key="0.tar", Body=data)
    with (
        fault_proxy(s3_address, stall_seconds=6.0) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        reader = RangeReader(HASTY)
        yield proxy, reader, list_with(reader, "s3://faulty/0.tar")[0]


@pytest.fixture(params=["http", "s3"])
def faulty(request, web_proxy):
    """(proxy, reader, shard) in front of each kind of store; the plan is the test's to make."""
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
def test_every_fault_that_passes_is_survived_and_counted(faulty, data, fault):
    """What the network does on its own is no reason to end a run, or to read a wrong byte."""
    proxy, reader, shard = faulty
    plan = [fault]
    proxy.plan = lambda _: plan.pop() if plan else None
    before = reader.counters
    assert reader.read(shard, 1000, 200_000) == data[1000:200_000]
    assert plan == []
    after = reader.counters
    seen = {k: n - before.retries.get(k, 0) for k, n in after.retries.items()}
    counted = {k for k, n in seen.items() if n}
    # A busy machine may be too slow now and then. Where a kept connection turns out to be closed,
    # the library below makes a new one.
    assert counted | {"timeout"} == {KINDS[fault] or "timeout", "timeout"} or fault == "refuse"
    assert KINDS[fault] is None or seen.get(KINDS[fault], 0) >= (fault != "refuse")
    assert after.throttles - before.throttles == (KINDS[fault] == "throttled")
    # A part without Content-Range is, to S3's library, an answer like any other: it is refused too.
    assert after.bytes - before.bytes == 199_000


@pytest.mark.parametrize("fault", ["reset", "cut", "stall", "short"])
def test_a_body_that_breaks_is_resumed_where_it_broke(faulty, data, fault):
    """From the start again, a large range on a bad line would never end."""
    proxy, reader, shard = faulty
    plan = [fault] * (2 if fault == "stall" else 4)
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
def test_faults_that_stay_end_with_their_name_at_once(faulty, fault, error, message):
    """Asking again would only hide what happened, and resuming would mix two objects."""
    proxy, reader, shard = faulty
    plan = [fault, "reset"]
    proxy.plan = lambda _: plan.pop() if plan else None
    before = sum(reader.counters.retries.values())
    with pytest.raises(error, match=message) as raised:
        reader.read(shard, 0, 200_000)
    assert type(raised.value) is error
    assert sum(reader.counters.retries.values()) - before in (1, 2)  # the reset; a busy machine


def test_a_storm_without_end_ends_the_read(faulty):
    """A store that stays away must end the run with a name, and in time."""
    proxy, reader, shard = faulty
    proxy.plan = lambda _: "slow_down"
    with pytest.raises(ShardUnreadable, match=r"in 4 attempts \(.*\); check the network and"):
        reader.read(shard, 1000, 2000)
    proxy.plan = lambda _: "whole_200"
    with pytest.raises(ShardUnreadable, match="the whole shard came when a part was asked for"):
        reader.read(shard, 1000, 2000)


def test_a_pause_that_the_store_asks_for_is_kept(faulty, data):
    """Who comes back too early is sent away for longer."""
    proxy, reader, shard = faulty
    plan = ["retry_after"] * 3
    proxy.plan = lambda _: plan.pop() if plan else None
    started = time.monotonic()
    assert reader.read(shard, 0, 1000) == data[:1000]
    assert time.monotonic() - started >= 3 * RETRY_AFTER_SECONDS


def test_a_whole_read_survives_faults_on_a_server_without_ranges(tmp_path, data, monkeypatch):
    """Each break costs what came before once more, but not one byte of the shard."""
    monkeypatch.setattr("shards.stores.range_reader._PIECE_BYTES", 50_000)
    (tmp_path / "0.tar").write_bytes(data)
    faults = itertools.cycle(["reset", "cut", "stall", "short", "status_503", "refuse", None])
    with (
        web_server(tmp_path) as address,
        fault_proxy(address, lambda _: next(faults)) as proxy,
    ):
        reader = RangeReader(HASTY)
        (shard,) = list_with(reader, f"{address}/flat/0.tar")
        behind = replace(shard, uri=f"{proxy.address}/flat/0.tar")
        assert b"".join(reader.read_whole(behind)) == data
        assert set(reader.counters.retries) >= {"reset", "timeout", "short", "throttled"}


def test_a_connection_that_is_never_answered_times_out():
    """A dead host would hold a reader for as long as the kernel likes."""
    hasty = RetryConfig(num_attempts=1, connect_timeout_seconds=0.3, read_timeout_seconds=0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/0.tar"
        reader = RangeReader(SourceConfig(retry=hasty))
        started = time.monotonic()
        with pytest.raises(ShardUnreadable, match=r"in 1 attempt \(.*imeout.*\)"):
            reader.read(ShardInfo(address, 10_000, "version"), 0, 10)
    assert time.monotonic() - started < 5


def test_many_threads_settle_on_what_a_store_can_do(tmp_path, data):
    """Each for itself would ask again and again, and nobody would be answered."""
    (tmp_path / "0.tar").write_bytes(data)
    retry = replace(QUICK.retry, num_attempts=20, first_wait_seconds=0.01, longest_wait_seconds=0.1)
    BusyHandler.num_refused = 0
    with web_server(tmp_path, BusyHandler) as address:
        reader = RangeReader(SourceConfig(retry=retry))
        (shard,) = list_with(reader, f"{address}/0.tar")
        with ThreadPoolExecutor(16) as pool:
            starts = range(0, 200_000, 500)
            found = list(pool.map(lambda a: reader.read(shard, a, a + 500), starts))
    assert b"".join(found) == data[:200_000]
    assert reader.counters.throttles == BusyHandler.num_refused
    assert 0 < BusyHandler.num_refused < len(found) / 4


def test_other_asynchronous_stores_are_bounded_in_time(web_proxy, data):
    """Google's and Azure's libraries would wait for minutes, and know no other bound."""
    counters = RequestCounters()
    client = RetryingClient(HASTY.retry, RequestLimiter(), counters, "s3://b")
    filesystem = fsspec.filesystem("http", skip_instance_cache=True)
    retry = replace(HASTY.retry, connect_timeout_seconds=0.1)
    store = FsspecStore(filesystem, web_proxy.address, retry, client)
    shard = ShardInfo(f"{web_proxy.address}/0.tar", len(data), f'"{HASTY}"')
    plan = ["stall_before"]
    web_proxy.plan = lambda _: plan.pop() if plan else None
    sink = bytearray()
    with pytest.raises(ShardChanged):  # the version is looked at once the bytes are there
        client.call(lambda: store.fetch(shard, 5, 1000, sink))
    assert counters.snapshot().retries == {"timeout": 1} and plan == []
    web_proxy.plan = lambda _: None


def test_shards_of_the_hub_are_listed_and_read(fake_hub):
    """A large part of all public data lies there."""
    reader = RangeReader(QUICK)
    shards = list_with(reader, f"hf://{DATASET}/set")
    assert [shard.uri for shard in shards] == [f"hf://{DATASET}/set/{i}.tar" for i in range(10)]
    for pattern in ("set/*.tar", "set/{0..9}.tar"):
        assert list_with(reader, f"hf://{DATASET}/{pattern}") == shards
    assert list_with(reader, f"hf://{DATASET}/set/3.tar") == [shards[3]]
    (small,) = list_with(reader, f"hf://{DATASET}/small.tar")
    assert reader.read(small, 700, 2000) == tar_bytes()[700:2000]
    assert reader.read(shards[3], 700, 2000) == tar_bytes(5)[700:2000]
    fake_hub.asked.clear()
    assert b"".join(reader.read_whole(shards[4])) == tar_bytes(6)
    assert len(fake_hub.asked) == 2  # the Hub, and where it sends who asks


def test_a_shard_of_the_hub_that_was_replaced_or_deleted_is_refused(fake_hub):
    """Data sets are mended while others train on them."""
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


@pytest.mark.parametrize("word", ["", "another word"])
def test_where_the_hub_names_no_version_it_is_asked_for_it(fake_hub, word, monkeypatch):
    """What it says today it may say otherwise tomorrow: that is no reason to call shards changed,
    or to miss that they are."""
    fake_hub.tag = lambda _: word
    reader = RangeReader(QUICK)
    (shard,) = list_with(reader, f"hf://{DATASET}/set/3.tar")
    fake_hub.asked.clear()
    for _ in range(3):
        assert reader.read(shard, 700, 2000) == tar_bytes(5)[700:2000]
    assert len([path for path in fake_hub.asked if "paths-info" in path]) == 1
    monkeypatch.setattr("shards.stores.hub_store._CHECK_SECONDS", 0.0)
    fake_hub.files["set/3.tar"] = tar_bytes(5, b"y")
    with pytest.raises(ShardChanged, match=r"\.tar was written to"):
        reader.read(shard, 700, 2000)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_reader_travels_by_pickle_and_goes_on_after_a_fork(files, data):
    """DataLoader workers are forks of a process that has read already."""
    reader = RangeReader(QUICK)
    (shard,) = list_with(reader, f"{files}/0.tar")
    assert reader.read(shard, 0, 100) == data[:100]
    assert pickle.loads(pickle.dumps(reader)).config == reader.config
    assert pickle.loads(pickle.dumps(reader.counters)) == reader.counters
    child = os.fork()
    if child == 0:
        os._exit(reader.read(shard, 5, 1000) != data[5:1000])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_signed_addresses_work_and_no_message_shows_the_signature(folder):
    """The query is needed to read, and must be in nothing that is printed."""
    reader = RangeReader(QUICK)
    with web_server(folder) as address:
        host = address.removeprefix("http://")
        signed = f"http://user:PASSWORD@{host}/secret/05.tar?sig=SIGNATURE"
        (shard,) = list_with(reader, signed)
        assert reader.read(shard, 0, 600) == (folder / "05.tar").read_bytes()[:600]
        (folder / "05.tar").unlink()
        with pytest.raises(ShardUnreadable, match="is gone") as gone:
            reader.read(shard, 0, 600)
    with pytest.raises(ShardUnreadable, match="in 3 attempts") as away:
        RangeReader(QUICK).read(shard, 0, 600)
    for error in (gone, away):
        shown = "".join(traceback.format_exception(error.value))
        assert "SIGNATURE" not in shown and "PASSWORD" not in shown
