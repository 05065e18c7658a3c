"""Check of one shard: chunks against a walk, repeated and scattered keys."""

import gzip
import random

import pytest

from shards.inspect.shard_check import new_report, walk_shard
from shards.records import Sample, ShardInfo
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from tests.tars import make_tar, samples_by_tarfile
from tests.wild_tars import expected_samples, wild_tar


def members(names, size=600):
    return [(name, random.Random(name).randbytes(size)) for name in names]


@pytest.fixture
def check(tmp_path):
    """Return a function that writes a shard and checks it: report, samples, reader."""

    def run(data, chunk_bytes=16384, name="0.tar"):
        (tmp_path / name).write_bytes(data)
        (shard,) = list_shards(str(tmp_path / name))
        reader, report = CountingReader(), new_report(0, shard)
        parts = list(walk_shard(reader, shard, report, chunk_bytes))
        assert sum(num_bytes for num_bytes, _ in parts) == shard.num_bytes
        return report, [item for _, found in parts for item in found], reader

    return run


class CountingReader(RangeReader):
    num_bytes = 0

    def read(self, shard, start, stop):
        self.num_bytes += stop - start
        return super().read(shard, start, stop)


def contents(found):
    return [(item.key, dict(item.fields)) for item in found if isinstance(item, Sample)]


def test_ordinary_shard_is_good_and_read_once(check):
    """Every chunk is cut twice: the transfer would be paid twice."""
    data = make_tar(members(f"{i:04d}.{e}" for i in range(1000) for e in ("jpg", "txt")))
    report, found, reader = check(data, 1 << 17)
    assert contents(found) == samples_by_tarfile(data)
    assert report.is_good and report.needs_walk_at is None
    assert reader.num_bytes == len(data)


def test_misleading_nested_tar_makes_a_shard_irregular(check):
    """A run would train on members of the nested tar until it notices."""
    inner = make_tar(members(f"{i:04d}.jpg" for i in range(100)))
    data = make_tar([*members(f"{i:03d}.jpg" for i in range(20)), ("x.tar", inner),
                     *members(f"9{i:03d}.jpg" for i in range(20))])  # fmt: skip
    report, found, _ = check(data)
    assert contents(found) == samples_by_tarfile(data)
    assert report.irregular_at is not None and report.needs_walk_at is not None
    assert not report.is_good
    assert report.needs_walk_at <= 20 * 1536 < report.irregular_at + 16384


def test_harmless_nested_tar_makes_a_shard_slow_and_not_bad(check):
    """The user would pack a good shard again, or not learn why it is slow."""
    inner = make_tar(members(f"{i:04d}.jpg" for i in range(5))) + bytes(30_000)
    report, _, _ = check(make_tar([*members(["0.jpg", "1.jpg"]), ("1.tar", inner)]))
    assert report.needs_walk_at == 0 and report.irregular_at is None and report.is_good


@pytest.mark.parametrize(
    ("names", "repeated", "scattered", "first"),
    [
        (["0.jpg", "0.txt", "1.jpg", "1.txt"], 0, 0, None),
        (["0.jpg", "1.jpg", "0.txt", "1.txt"], 0, 2, 2),
        (["0.jpg", "1.jpg", "0.jpg", "1.jpg", "0.jpg"], 3, 0, None),
        (["0.jpg", "0.jpg"], 1, 0, None),
        (["0.jpg", "1.jpg", "0.txt", "2.jpg", "0.txt"], 1, 1, 2),
        (["a/0.jpg", "b/0.txt"], 0, 0, None),
    ],
)
def test_keys_are_counted_as_repeated_or_scattered(check, names, repeated, scattered, first):
    """An image whose label is elsewhere in the shard would go unnoticed."""
    report, _, _ = check(make_tar(members(names)))
    assert (report.num_repeated, report.num_scattered) == (repeated, scattered)
    assert report.first_scattered == (None if first is None else first * 1536)
    assert report.is_good == (scattered == 0)


def test_report_shows_no_secret():
    """A report that is shared would contain a password."""
    shard = ShardInfo("https://user:secret@host/0.tar?X-Signature=secret", 10, "1")
    assert new_report(0, shard).uri == "https://host/0.tar"


def test_file_that_is_no_tar_is_one_reject(check):
    """One wrong file would end the scan."""
    _, (reject,), _ = check(b"<html>" * 20_000)
    assert (reject.reason, reject.offset) == ("broken_tar", 0)


def test_compressed_shard_is_checked_in_parts(check):
    """Its one chunk has more samples than may be decoded at a time."""
    data = make_tar(members(f"{i:04d}.jpg" for i in range(600)))
    report, found, _ = check(gzip.compress(data), name="0.tar.gz")
    assert contents(found) == samples_by_tarfile(data) and report.is_good


def test_wild_tars_are_counted_exactly(check):
    """Chunks of rare tars would hide samples from the counts."""
    for seed in range(4):
        wild = wild_tar(seed, nested=seed % 2 == 0)
        report, found, _ = check(wild.data, 4096)
        assert [item.offset for item in found if isinstance(item, Sample)] == [
            sample.offset for sample in expected_samples(wild.data)
        ], seed
        assert report.irregular_at is None or (wild.nested and report.needs_walk_at is not None)
