"""Manifest: its digest names the data; its probe sizes chunks and refuses other files."""

import gzip
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.errors import ManifestError
from shards.records import ShardInfo
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.manifest_file import read_manifest, write_manifest
from shards.stream.manifest_listing import open_manifest
from tests.tars import make_tar

SHARDS = tuple(ShardInfo(f"s3://b/{i}.tar", 1000 + i, f"etag{i}") for i in range(5))


def test_the_digest_changes_with_every_field_of_the_data():
    """A cursor would be accepted with other data."""
    digests = {Manifest(SHARDS, 100.0).digest}
    for change in (
        {"uri": "s3://b/x.tar"},
        {"num_bytes": 7},
        {"version": "new"},
        {"source": 1},
        {"whole": True},
    ):
        digests.add(Manifest((replace(SHARDS[0], **change), *SHARDS[1:]), 100.0).digest)
    digests.add(Manifest(SHARDS[:4], 100.0).digest)
    assert len(digests) == 7 and all(len(digest) == 32 for digest in digests)


def test_the_digest_is_frozen():
    """Runs that were saved with another digest could not be resumed."""
    assert Manifest(SHARDS, 100.0).digest == "5001e127a431bf758e113639d11a7187"


def test_signatures_and_estimates_are_not_part_of_the_digest():
    """Signed addresses change every hour, and probes may read other shards."""
    signed = [replace(shard, uri=f"https://me:pw@h/{i}?sig={i}") for i, shard in enumerate(SHARDS)]
    again = [replace(shard, uri=f"https://h/{i}?sig=new") for i, shard in enumerate(SHARDS)]
    assert Manifest(tuple(signed), 1.0).digest == Manifest(tuple(again), 2.0).digest


@pytest.mark.parametrize(
    ("sample_bytes", "chunk_bytes"),
    [(1, 1 << 18), (3_000, 1 << 18), (10_000, 1 << 19), (40_000, 1 << 21), (1e7, 1 << 24)],
)
def test_a_chunk_holds_about_48_samples_within_bounds(sample_bytes, chunk_bytes):
    """Small chunks make transfers expensive, large ones make losses expensive."""
    assert Manifest(SHARDS, sample_bytes).suggest_chunk_bytes() == chunk_bytes


def test_a_block_holds_about_four_batches():
    """Small blocks mix badly, large ones hold too many bytes."""
    manifest = Manifest(tuple(replace(shard, num_bytes=1 << 30) for shard in SHARDS), 10_000.0)
    assert manifest.suggest_chunks_per_block(1 << 19, 4096) == int(np.ceil(4 * 4096 / 52.4288))
    assert manifest.suggest_chunks_per_block(1 << 19, 1) == 8
    whole = Manifest(tuple(replace(shard, whole=True) for shard in manifest.shards), 10_000.0)
    assert whole.suggest_chunks_per_block(1 << 19, 1 << 20) == 40


def test_a_manifest_file_lists_the_shards_without_secrets(tmp_path):
    """The run folder must show which data was read."""
    shards = (ShardInfo("https://u:pw@h/0.tar?sig=SECRET", 12, "v"), *SHARDS)
    write_manifest(Manifest(shards, 1.0), tmp_path / "manifest.parquet")
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    assert rows[0] == {
        "source": 0,
        "uri": "https://h/0.tar",
        "num_bytes": 12,
        "version": "v",
        "whole": False,
        "keys": "first_dot",
        "keep_hidden": False,
    }
    assert [row["num_bytes"] for row in rows[1:]] == [1000 + i for i in range(5)]


def test_a_manifest_file_replaces_a_listing(synthetic_shards, tmp_path):
    """The bucket may hold more shards when a batch is made again."""
    one = open_manifest(
        [str(synthetic_shards), str(synthetic_shards)], RangeReader(), separate=True
    )
    write_manifest(one, tmp_path / "m.parquet")
    again = read_manifest(tmp_path / "m.parquet")
    assert again == one and again.digest == one.digest and again.patterns == one.patterns


def test_a_manifest_file_without_signatures_is_refused(tmp_path):
    """Its shards could not be read, and the user would not know why."""
    shards = (ShardInfo("https://h/0.tar?sig=SECRET", 12, "v"),)
    write_manifest(Manifest(shards, 1.0, ("https://h/0.tar?sig=SECRET",)), tmp_path / "m")
    with pytest.raises(ManifestError, match=r"name them again: --data https://h/0\.tar$"):
        read_manifest(tmp_path / "m")
    for damaged in (b"junk", b""):
        (tmp_path / "m").write_bytes(damaged)
        with pytest.raises(
            ManifestError, match=r"cannot be read as a manifest .*; give the folder"
        ):
            read_manifest(tmp_path / "m")


def test_patterns_form_one_source_unless_separate(synthetic_shards):
    """A shard of two patterns is one shard, or one in each source."""
    names = sorted(str(path) for path in synthetic_shards.glob("*.tar"))
    patterns = [f"{synthetic_shards}/*.tar", names[1], names[0]]
    together = open_manifest(patterns, RangeReader())
    assert together == open_manifest(str(synthetic_shards), RangeReader())
    apart = open_manifest(patterns, RangeReader(), separate=True)
    assert [(shard.source, shard.uri) for shard in apart.shards] == [
        *((0, name) for name in names),
        (1, names[1]),
        (2, names[0]),
    ]
    assert apart.digest != together.digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            gzip.compress(bytes(20000), mtime=0),
            r"a\.tar is not a tar: it begins with a gzip file; .*pack",
        ),
        (b"<html>404</html>" * 99, r"a\.tar is not a tar: it begins with b'<html>40'; a shard"),
        (
            bytes(10240),
            r"no sample was found at the start of .*a\.tar; .*`streamssl shards verify`",
        ),
        (
            make_tar([("n01440764.tar", make_tar([("0.jpg", b"x")]))]),
            r"a\.tar holds a tar inside the tar \(n01440764\.tar\); .* extract it and give the inn",
        ),
    ],
)
def test_a_file_that_is_not_a_shard_is_refused_before_the_run(tmp_path, data, message):
    """The run would end with a table of rejects after a day."""
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        open_manifest(str(tmp_path), RangeReader())


def test_shares_of_chunks_are_converted_to_shares_of_samples(tmp_path):
    """Equal weights of thumbnails and photographs give few photographs."""
    for name, size in (("small", 1000), ("large", 30_000)):
        members = [(f"{i}.jpg", bytes(size)) for i in range(100)]
        (tmp_path / f"{name}.tar").write_bytes(make_tar(members))
    patterns = [f"{tmp_path}/{name}.tar" for name in ("small", "large")]
    manifest = open_manifest(patterns, RangeReader(), separate=True)
    small, large = manifest.sample_shares(1 << 14, [0.5, 0.5])
    assert small + large == pytest.approx(1) and 15 < small / large < 25
    small, large = manifest.sample_shares(1 << 14, [0, 1])
    assert (small, large) == (0, 1)


def test_an_empty_shard_among_others_is_accepted(tmp_path):
    """Crawlers sometimes leave an empty tar."""
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    (tmp_path / "b.tar").write_bytes(make_tar([(f"{i}.jpg", bytes(1000)) for i in range(9)]))
    manifest = open_manifest(str(tmp_path), RangeReader())
    assert len(manifest.shards) == 2 and 1000 < manifest.sample_bytes < 3000
