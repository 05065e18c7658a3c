"""Listings of shards in folders, S3 and on the web, and their error messages."""

import os
import time

import fsspec
import pytest

from shards.errors import ManifestError
from shards.stores.retry import RetryConfig
from shards.stores.shard_listing import list_shards
from shards.stores.store_clients import Stores
from tests.stores import put_many, tar_bytes, web_server

QUICK = RetryConfig(num_attempts=3, first_wait_seconds=0.0, longest_wait_seconds=0.0)


def names(shards):
    return [shard.uri.rpartition("/")[2] for shard in shards]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{00..11}.tar", [f"{i:02d}.tar" for i in range(12)]),
        ("{07,03}.tar", ["03.tar", "07.tar"]),
        ("{03,03}.tar", ["03.tar"]),
        ("0[1-3].tar", ["01.tar", "02.tar", "03.tar"]),
        ("?5.tar", ["05.tar"]),
        ("{00,1*}.tar", ["00.tar", "10.tar", "11.tar"]),
        ("*/*.TAR", ["x.TAR"]),
        ("", [*(f"{i:02d}.tar" for i in range(12)), "x.TAR"]),
        ("07.tar", ["07.tar"]),
    ],
)
def test_a_pattern_lists_shards_in_sorted_order(folder, pattern, found):
    """Two patterns for the same shards would be two data sets."""
    shards = list_shards(f"{folder}/{pattern}")
    assert names(shards) == found
    assert all(shard.num_bytes == os.path.getsize(shard.uri) for shard in shards)
    assert not any(shard.whole for shard in shards)


def test_home_relative_and_file_addresses_list_the_same_shards(folder, monkeypatch):
    """A run that is resumed from another directory would not find its data."""
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    expected = list_shards(str(folder))
    for pattern in (f"~/{folder.name}", ".", f"file://{folder}", f"{folder}/"):
        assert list_shards(pattern) == expected
    assert list_shards("{00..11}.tar") == expected[:12]


def test_compressed_tars_are_read_whole(tmp_path):
    """A range of a gzip file cannot be decompressed."""
    for name in ("a.tar", "b.tar.gz", "c.tgz", "d.TAR.ZST", "e.zip", "f.gz"):
        (tmp_path / name).write_bytes(b"x")
    found = {os.path.basename(shard.uri): shard.whole for shard in list_shards(str(tmp_path))}
    assert found == {"a.tar": False, "b.tar.gz": True, "c.tgz": True, "d.TAR.ZST": True}


def test_a_link_counts_as_its_target(tmp_path):
    """The Hub downloads folders of links; their dates are not those of the shards."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "blobs" / "x").write_bytes(tar_bytes())
    (tmp_path / "links" / "0.tar").symlink_to(tmp_path / "blobs" / "x")
    os.utime(tmp_path / "blobs" / "x", (1000, 1000))
    (shard,) = list_shards(str(tmp_path / "links"))
    assert shard.version == f"1000.0-{len(tar_bytes())}"
    assert list_shards(str(tmp_path / "links" / "*.tar")) == [shard]
    assert list_shards(str(tmp_path / "links" / "0.tar")) == [shard]
    (tmp_path / "links" / "1.tar").symlink_to(tmp_path / "nothing")
    assert [one.num_bytes for one in list_shards(str(tmp_path / "links"))] == [shard.num_bytes, 0]


@pytest.mark.parametrize("name", ["data [v2]", "what?", "star*", "{a,b}"])
def test_a_path_that_exists_is_that_path(tmp_path, name):
    """Folders with the characters of a pattern could not be named."""
    (tmp_path / name).mkdir()
    (tmp_path / "whatX").mkdir()
    for path in (tmp_path / name / "0.tar", tmp_path / name / "._0.tar", tmp_path / "whatX/1.tar"):
        path.write_bytes(tar_bytes())
    for pattern in (name, f"{name}/*.tar", f"{name}/0.tar", f"{name}/{{0,0}}.tar"):
        found = [shard.uri for shard in list_shards(f"{tmp_path}/{pattern}")]
        assert found == [f"{tmp_path}/{name}/0.tar"], pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{00..14}.tar", r"3 of 15 shards do not exist, the first is .*/12\.tar; .* correct the"),
        ("{00..01", r"the braces of .* do not match; write \{0000\.\.0099\}"),
        ("nothing-*.tar", r"no shard matches '.*nothing-\*\.tar'; give a folder, a glob"),
        ("missing", r"^/.*/missing does not exist; give a folder, a glob, a brace pattern or a sh"),
        ("99.tar", r"^/.*/99\.tar does not exist; give"),
        ("00.tar/below.tar", r"00\.tar/below\.tar does not exist; give"),
        ("missing/{00..20}.tar", r"missing/\{00\.\.20\}\.tar' does not exist; give a folder"),
        ("empty", r"no shard matches .*; give a folder, a glob such as"),
        ("zero.tar", r"zero\.tar holds 0 bytes in 1 shards; a shard is a tar of at least one"),
        ("zero*.tar", r"zero\*\.tar holds 0 bytes in 2 shards; a shard is .*: write it again"),
        ("bel*", r"below is a folder; a shard is a \.tar file: give the folder itself"),
    ],
)
def test_an_invalid_pattern_is_refused_with_a_remedy(folder, pattern, message):
    """A run on half of its data may never be noticed."""
    (folder / "empty").mkdir()
    (folder / "zero.tar").touch()
    (folder / "zero2.tar").touch()
    with pytest.raises(ManifestError, match=message):
        list_shards(f"{folder}/{pattern}")


def test_unknown_stores_and_missing_libraries_are_named():
    """A typing error in the address would look like a network failure."""
    with pytest.raises(ManifestError, match="the store 's4', which is unknown; allowed are a loc"):
        list_shards("s4://bucket/x.tar")
    fsspec.register_implementation("needslib", "no_such_library.Store", clobber=True)
    with pytest.raises(ManifestError, match="needs a library that is not installed"):
        list_shards("needslib://bucket/x.tar")


def test_thousands_of_names_of_one_folder_take_one_listing(tmp_path):
    """A request for each of 10^5 shards would take an hour."""
    for index in range(2000):
        with open(tmp_path / f"{index:05d}.tar", "wb") as file:
            file.truncate(512)
    stores = Stores(QUICK)
    shards = list_shards(f"{tmp_path}/{{00000..01999}}.tar", stores)
    assert len(shards) == 2000 and stores.counters.snapshot().requests == 1
    assert shards == list_shards(str(tmp_path), stores)


def test_pattern_glob_and_folder_of_a_bucket_list_the_same_shards(s3, s3_stores):
    """A resume with another pattern would find other data."""
    expected = [f"s3://shelf/set/{i:02d}.tar" for i in range(12)]
    by_folder = list_shards("s3://shelf/set", s3_stores)
    assert [shard.uri for shard in by_folder] == expected
    for pattern in ("", "/", "/set/", "/set/*.tar", "/set/{00..11}.tar", "/s*/*.tar", "/**/*.tar"):
        assert list_shards(f"s3://shelf{pattern}", s3_stores) == by_folder
    assert list_shards("s3://shelf/set/{00..02}.tar", s3_stores) == by_folder[:3]
    assert list_shards("s3://shelf/set/0[5-7].tar", s3_stores) == by_folder[5:8]
    assert list_shards("s3://shelf/set/07.tar", s3_stores) == [by_folder[7]]


def test_a_listing_of_several_pages_is_complete_and_new_each_time(s3, s3_stores):
    """S3 lists a thousand names at a time; a cached page would hide new shards."""
    s3.create_bucket(Bucket="pages")
    put_many("pages", (f"{index:04d}.tar" for index in range(1005)), b"x")
    before = s3_stores.counters.snapshot().requests
    assert len(list_shards("s3://pages/{0000..1004}.tar", s3_stores)) == 1005
    assert s3_stores.counters.snapshot().requests == before + 2
    put_many("pages", ["1005.tar"], b"x")
    assert len(list_shards("s3://pages/*.tar", s3_stores)) == 1006


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "no-such-bucket/{00..11}.tar",
            "there is no bucket 's3://no-such-bucket'; give the name of one",
        ),
        ("no-such-bucket/*.tar", "there is no bucket 's3://no-such-bucket'; give the nam"),
        ("no-such-bucket", "there is no bucket 's3://no-such-bucket'; give the nam"),
        ("shelf/set/{00..13}.tar", r"2 of 14 shards do not exist.*s3://shelf/set/12\.tar"),
        ("shelf/set/99.tar", r"^s3://shelf/set/99\.tar does not exist; give a folder"),
        ("shelf/nothing", r"^s3://shelf/nothing does not exist; give a folder"),
        ("shelf/se*", r"^s3://shelf/set is a folder; a shard is a \.tar file: give the fold"),
        ("{shelf,other}", r"^s3://shelf is a folder; a shard is"),
    ],
)
def test_missing_buckets_and_objects_are_named(s3, s3_stores, pattern, message):
    """A wrong bucket name is the first mistake on a new machine."""
    with pytest.raises(ManifestError, match=message):
        list_shards(f"s3://{pattern}", s3_stores)


def test_missing_credentials_are_named_quickly(s3, monkeypatch):
    """Botocore would wait for a metadata service."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    started = time.monotonic()
    with pytest.raises(
        ManifestError,
        match=r"access to 's3://bucket/.*' was refused \(Unable to locate credentials\); check the",
    ):
        list_shards("s3://bucket/set/{00..11}.tar")
    assert time.monotonic() - started < 10


def test_shards_of_a_web_server_are_listed(folder):
    """Public data is on plain web servers, with or without an index page."""
    stores = Stores(QUICK)
    with web_server(folder) as address:
        shards = list_shards(f"{address}/{{00..11}}.tar", stores)
        assert names(shards) == [f"{i:02d}.tar" for i in range(12)]
        assert [shard.num_bytes for shard in shards] == [
            os.path.getsize(folder / name) for name in names(shards)
        ]
        assert list_shards(f"{address}/05.tar", stores) == [shards[5]]
        assert list_shards(f"{address}/0[45].tar", stores) == shards[4:6]
        assert names(list_shards(f"{address}/", stores)) == [*names(shards), "x.TAR"]
        with pytest.raises(ManifestError, match=r"1 of 2 shards do not exist.*/nothing\.tar"):
            list_shards(f"{address}/{{00,nothing}}.tar", stores)


def test_shards_of_a_server_without_ranges_are_read_whole(folder):
    """Such a server would send the whole shard for each chunk."""
    stores = Stores(QUICK)
    with web_server(folder) as address:
        assert all(shard.whole for shard in list_shards(f"{address}/flat/{{00..11}}.tar", stores))
        assert stores.counters.snapshot().requests == 12 + 1
        assert not any(shard.whole for shard in list_shards(f"{address}/{{00..11}}.tar", stores))


def test_a_file_without_a_length_is_refused(folder):
    """The order of samples needs the length of each shard."""
    with (
        web_server(folder) as address,
        pytest.raises(ManifestError, match=r"05\.tar has no known length; the server must answer"),
    ):
        list_shards(f"{address}/endless/05.tar", Stores(QUICK))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a/0.JPG", "a/0.txt"],
            "holds images, no shards; .* pack them with `streamssl shards pack",
        ),
        (["a/0.png", "metadata.parquet"], "holds images, no shards"),
        (["._0.png", "notes.txt"], "no shard matches"),
    ],
)
def test_a_folder_of_images_is_no_folder_of_shards(tmp_path, files, message):
    """A user who named a folder of images would be told to give a folder."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ManifestError, match=message):
        list_shards(str(tmp_path))
