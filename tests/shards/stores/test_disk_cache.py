"""Disk cache: never over its limit with many writers, never a wrong byte from a damaged file."""

import multiprocessing
import os
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.records import ShardInfo
from shards.stores.disk_cache import CacheConfig, DiskCache
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.request_counters import RequestCounters
from shards.stores.retry import RetryConfig
from shards.stores.shard_listing import list_shards
from tests.stores import web_server

SHARD = ShardInfo("s3://bucket/0.tar", 1 << 40, "etag")
HEAD = 32  # bytes of a cache file before the data
WARNING = "the run goes on without it"


def open_cache(folder, max_bytes=10**6):
    return DiskCache(CacheConfig(folder=str(folder), max_bytes=max_bytes)), RequestCounters()


def files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "ledger"]


def num_bytes(folder):
    total = 0
    for path in files(folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def content(start):
    return random.Random(start).randbytes(1000)


@pytest.mark.parametrize(
    "other",
    [
        (replace(SHARD, version="new"), 5, 1005),
        (replace(SHARD, uri="s3://bucket/1.tar"), 5, 1005),
        (SHARD, 5, 1004),
        (SHARD, 6, 1005),
    ],
)
def test_another_range_version_or_shard_is_a_miss(tmp_path, other):
    """A replaced shard would be read in its old version."""
    cache, counters = open_cache(tmp_path)
    cache.put(SHARD, 5, content(5), counters)
    assert cache.get(*other, counters) is None


def test_a_signed_query_is_not_part_of_the_cache_key(tmp_path):
    """Signed addresses change each hour. But a query that alone identifies a file must not be
    cached: two files would become one."""
    cache, counters = open_cache(tmp_path)
    cache.put(replace(SHARD, uri="https://h/0.tar?sig=1"), 0, content(0), counters)
    assert cache.get(replace(SHARD, uri="https://h/0.tar?sig=2"), 0, 1000, counters) == content(0)
    unnamed = ShardInfo("https://h/download?id=1", 1000, "-1000")
    cache.put(unnamed, 0, content(0), counters)
    assert len(files(tmp_path)) == 1 and counters.snapshot().cache_skipped == 1
    cache.put(replace(unnamed, uri="https://h/1.tar"), 0, content(0), counters)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: b"y" + data[1:],
        lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
        lambda data: data[:0],
    ],
)
def test_a_damaged_file_is_removed_and_written_again(tmp_path, damage):
    """Disks flip bits, and power fails in the middle of a write."""
    cache, counters = open_cache(tmp_path)
    cache.put(SHARD, 0, content(0), counters)
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(SHARD, 0, 1000, counters) is None
    assert files(tmp_path) == [] and counters.snapshot().cache_damaged == 1
    cache.put(SHARD, 0, content(0), counters)
    assert cache.get(SHARD, 0, 1000, counters) == content(0)


def test_the_least_recently_used_ranges_are_evicted(tmp_path):
    """The oldest range is often the most used."""
    size = 1000 + HEAD
    cache, counters = open_cache(tmp_path, 10 * size)
    for index in range(10):
        cache.put(SHARD, index, content(index), counters)
        os.utime(max(files(tmp_path), key=lambda path: path.stat().st_mtime_ns), (index, index))
    cache.get(SHARD, 0, 1000, counters)
    cache.put(SHARD, 10, content(10), counters)
    kept = [i for i in range(11) if cache.get(SHARD, i, i + 1000, counters) is not None]
    assert kept == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert counters.snapshot().cache_evicted == 1
    cache.put(SHARD, 0, bytes(10 * size - HEAD + 1), counters)  # larger than the whole cache
    assert len(files(tmp_path)) == 10 and counters.snapshot().cache_skipped == 1


def test_a_lower_limit_holds_at_once(tmp_path):
    """A disk may have to be shared from now on."""
    cache, counters = open_cache(tmp_path)
    for index in range(20):
        cache.put(SHARD, index, content(index), counters)
    open_cache(tmp_path, 5000)
    assert num_bytes(tmp_path) <= 5000 and len(files(tmp_path)) == 4


def test_drafts_of_killed_writers_are_removed_and_a_lost_ledger_is_counted_again(tmp_path):
    """Files that are not counted would fill the disk."""
    cache, counters = open_cache(tmp_path, 5000)
    cache.put(SHARD, 0, content(0), counters)
    (path,) = files(tmp_path)
    path.with_name(f".{path.name}.draft").write_bytes(bytes(3000))
    (tmp_path / "ledger").write_text("")
    for index in range(1, 4):
        cache.put(SHARD, index, content(index), counters)
    assert num_bytes(tmp_path) == 4 * (1000 + HEAD)
    assert (tmp_path / "ledger").read_text() == str(num_bytes(tmp_path))


def _write_many(folder, seed, seconds):
    cache, counters = open_cache(folder, 50_000)
    rng, until = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < until or not counters.snapshot().cache_hits:
        start = rng.randrange(200)
        data = cache.get(SHARD, start, start + 1000, counters)
        assert data is None or data == content(start)
        if data is None:
            cache.put(SHARD, start, content(start), counters)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_processes_never_pass_the_limit(tmp_path):
    """A full disk takes the whole node down."""
    context = multiprocessing.get_context("fork")
    deadline = time.monotonic() + 1.0
    writers = [context.Process(target=_write_many, args=(tmp_path, seed, 1.0)) for seed in range(4)]
    for process in writers:
        process.start()
    max_seen = num_killed = 0
    while time.monotonic() < deadline:
        max_seen = max(max_seen, num_bytes(tmp_path))
        if deadline - time.monotonic() < 0.9 - 0.1 * num_killed:
            victim = num_killed % 4
            os.kill(writers[victim].pid, signal.SIGKILL)
            writers[victim].join()
            args = (tmp_path, 10 + num_killed, max(0.3, deadline - time.monotonic()))
            writers[victim] = context.Process(target=_write_many, args=args)
            writers[victim].start()
            num_killed += 1
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    assert num_killed > 0 and 20_000 < max_seen <= 50_000
    cache, counters = open_cache(tmp_path, 50_000)
    cache.put(replace(SHARD, uri="s3://bucket/last.tar"), 0, bytes(40_000), counters)
    assert num_bytes(tmp_path) <= 50_000


def test_a_full_disk_disables_writes_with_one_warning(tmp_path, caplog):
    """A cache is no reason to stop a run, nor to fill its log."""
    cache, counters = open_cache(tmp_path)
    cache.put(SHARD, 0, content(0), counters)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # maximum size of any file
    try:
        for index in range(1, 4):
            cache.put(SHARD, index, content(index), counters)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert counters.snapshot().cache_skipped == 3
    assert len(files(tmp_path)) == 1  # no draft is left
    assert cache.get(SHARD, 0, 1000, counters) == content(0)
    assert caplog.text.count(WARNING) == 1
    assert "`ulimit -f` shows the limit" in caplog.text and "give another --cache" in caplog.text


def test_a_folder_that_cannot_be_made_disables_the_cache_with_one_warning(tmp_path, caplog):
    """One node of many may have no such disk."""
    (tmp_path / "file").write_text("in the way")
    cache, counters = open_cache(tmp_path / "file" / "cache")
    cache.put(SHARD, 0, content(0), counters)
    assert cache.get(SHARD, 0, 1000, counters) is None
    assert caplog.text.count(WARNING) == 1


def test_the_second_epoch_is_read_from_the_disk(tmp_path, folder):
    """Ranges and whole shards would be downloaded again by each process; local files must not be
    copied."""
    data = (folder / "11.tar").read_bytes()
    config = SourceConfig(
        retry=RetryConfig(num_attempts=2, first_wait_seconds=0.0),
        cache=CacheConfig(folder=str(tmp_path / "cache"), max_bytes=10**6),
    )
    with web_server(folder) as address:
        first = RangeReader(config)
        (shard,) = list_shards(f"{address}/11.tar", first.stores)
        (flat,) = list_shards(f"{address}/flat/11.tar", first.stores)
        assert first.read(shard, 7, 1000) == data[7:1000]
        assert b"".join(first.read_whole(flat)) == data
        assert first.counters.cache_misses == 2 and first.counters.bytes == 993 + len(data)
        second = RangeReader(config)
        assert second.read(shard, 7, 1000) == data[7:1000]
        second.can_range(flat)
        assert b"".join(second.read_whole(flat)) == data
        counters = second.counters
        assert (counters.requests, counters.bytes, counters.cache_hits) == (1, 0, 2)
        (local,) = list_shards(f"{folder}/05.tar", second.stores)
        second.read(local, 0, 512)
        assert len(files(tmp_path / "cache")) == 2 and second.counters.cache_misses == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folder": ""}, "the cache has no folder; it needs one .*: give --cache FOLDER"),
        ({"max_bytes": 0}, "cache max_bytes=0; it must be at least 1: give what the disk can spa"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    """A limit of zero would cache nothing."""
    with pytest.raises(ConfigError, match=message):
        CacheConfig(**({"folder": "x", "max_bytes": 1} | fields))
