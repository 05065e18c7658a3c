"""Listing and ranged reads, from folders, S3 and the web, when all is well and when it is not."""

import http.server
import io
import os
import re
import threading
import time
import traceback
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import boto3
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from shards.errors import ConfigError, ManifestError, ShardChanged, ShardUnreadable
from shards.redaction import redact, short
from shards.sources import RangeReader, RetryConfig, list_shards
from tests.tars import make_tar

QUICK = RetryConfig(num_attempts=3, first_wait_seconds=0.0, longest_wait_seconds=0.0)


def tar_bytes(num=3, fill=b"x"):
    return make_tar([(f"{index}.jpg", fill * 600) for index in range(num)])


@pytest.fixture
def folder(tmp_path):
    """00.tar .. 11.tar, one more in a folder below, and files that are no shards."""
    for index in range(12):
        (tmp_path / f"{index:02d}.tar").write_bytes(tar_bytes(index + 1))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.TAR").write_bytes(tar_bytes())
    (tmp_path / "00.parquet").write_bytes(b"no shard")
    (tmp_path / "readme.txt").write_bytes(b"no shard")
    return tmp_path


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
def test_patterns_name_shards_in_sorted_order(folder, pattern, found):
    """Two ways to name the same shards would be two different data sets."""
    shards = list_shards(f"{folder}/{pattern}")
    assert names(shards) == found
    assert all(shard.num_bytes == os.path.getsize(shard.uri) for shard in shards)


def test_home_relative_and_file_addresses_name_the_same_shards(folder, monkeypatch):
    """A run started from another directory would not find its checkpoint's data."""
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    expected = list_shards(str(folder))
    for pattern in (f"~/{folder.name}", ".", f"file://{folder}", f"{folder}/"):
        assert list_shards(pattern) == expected
    assert list_shards("{00..11}.tar") == expected[:12]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{00..14}.tar", r"3 of 15 shards do not exist, the first is .*/12\.tar; .* mend the pat"),
        ("{00..01", r"the braces of .* do not match; write \{0000\.\.0099\}"),
        ("nothing-*.tar", r"no shard matches '.*nothing-\*\.tar'; give a folder, a glob"),
        ("missing", r"1 of 1 shards do not exist, the first is .*/missing; .* mend the pattern"),
        ("missing/{00..20}.tar", r"missing/\{00\.\.20\}\.tar' does not exist; give a folder"),
        ("empty", r"no shard matches .*; give a folder, a glob such as"),
        ("zero.tar", r"zero\.tar holds 0 bytes \(1 such\); a shard is .*; remove it"),
        ("bel*", r"below is a folder; a shard is a \.tar file: give the folder itself"),
    ],
)
def test_what_cannot_be_listed_is_refused_with_the_remedy(folder, pattern, message):
    """A run that starts on half of its data is noticed weeks later, if at all."""
    (folder / "empty").mkdir()
    (folder / "zero.tar").touch()
    with pytest.raises(ManifestError, match=message):
        list_shards(f"{folder}/{pattern}")


def test_unknown_stores_and_missing_libraries_are_named():
    """A slip in the address must not read like a network failure."""
    with pytest.raises(ManifestError, match="the store 's4', which is unknown; allowed are a loc"):
        list_shards("s4://bucket/x.tar")
    fsspec.register_implementation("needslib", "no_such_library.Store", clobber=True)
    with pytest.raises(ManifestError, match="needs a library that is not installed"):
        list_shards("needslib://bucket/x.tar")


def test_a_second_listing_sees_new_shards(folder):
    """A cached listing would train on yesterday's bucket."""
    before = list_shards(str(folder))
    (folder / "12.tar").write_bytes(tar_bytes())
    assert len(list_shards(str(folder))) == len(before) + 1


def test_ranges_are_exactly_the_bytes(folder):
    """One byte off and every header is damage."""
    (shard,) = list_shards(f"{folder}/05.tar")
    data = (folder / "05.tar").read_bytes()
    reader = RangeReader()
    for start, stop in [(0, 1), (0, len(data)), (511, 513), (7, 7), (len(data) - 3, len(data))]:
        assert reader.read(shard, start, stop) == data[start:stop]


def test_a_file_that_was_written_to_is_refused(folder):
    """Half of an epoch from one version and half from another is no data set."""
    (shard,) = list_shards(f"{folder}/05.tar")
    reader = RangeReader()
    reader.read(shard, 0, 512)
    (folder / "05.tar").write_bytes(tar_bytes(6, b"y"))
    with pytest.raises(ShardChanged, match=r"05\.tar was written to since .*: start a new run"):
        reader.read(shard, 0, 512)


def test_a_file_that_is_gone_is_refused_at_once(folder):
    """Nothing brings a deleted file back: retries would only hide what happened."""
    (shard,) = list_shards(f"{folder}/05.tar")
    (folder / "05.tar").unlink()
    started = time.monotonic()
    with pytest.raises(ShardUnreadable, match=r"05\.tar is gone; .* put it back, or start a new"):
        RangeReader(RetryConfig(first_wait_seconds=5)).read(shard, 0, 512)
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
    "plan",
    [
        [ConnectionResetError("reset by peer")],
        [TimeoutError(), LibraryError("503 slow down")],
        [100],
        [0, 511],
    ],
)
def test_reads_that_fail_or_come_short_are_made_again_in_full(flaky, plan):
    """A retry that goes on from a wrong place loses data without a word."""
    FlakyStore.plan.extend(plan)
    assert RangeReader(QUICK).read(flaky, 512, 2048) == tar_bytes()[512:2048]
    assert FlakyStore.num_reads == len(plan) + 1


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([OSError("disk on fire")] * 3, "disk on fire"),
        ([LibraryError("503 slow down")] * 3, "503 slow down"),
        ([10, 20, 30], "30 bytes came instead of 1536"),
    ],
)
def test_after_the_last_attempt_the_shard_is_unreadable(flaky, plan, message):
    """A store that stays away must end the run with a name, not with silence."""
    FlakyStore.plan.extend(plan)
    found = rf"flaky://data/0\.tar could not be read at bytes 512-2048 in 3 attempts \({message}\)"
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
    """Stores that compare no version with the read are asked for it before the first one."""
    fsspec.filesystem("flaky").pipe_file("flaky://data/0.tar", tar_bytes(9))
    with pytest.raises(ShardChanged, match=r"flaky://data/0\.tar was written to"):
        RangeReader(QUICK).read(flaky, 0, 512)


@pytest.mark.parametrize(
    "fields",
    [{"num_attempts": 0}, {"first_wait_seconds": -1.0}, {"first_wait_seconds": 99.0}],
)
def test_retries_that_cannot_work_are_refused(fields):
    """No attempt at all would fall through to an error without a cause."""
    with pytest.raises(ConfigError, match="it must be"):
        RetryConfig(**fields)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/data/a?b#c.tar", "/data/a?b#c.tar"),
        ("s3://bucket/a#1.tar", "s3://bucket/a#1.tar"),
        ("s3://KEY:SECRET@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://user:pw@host:81/a/b.tar?sig=SECRET#SECRET", "https://host:81/a/b.tar"),
        ("https://TOKEN@host/b@c.tar", "https://host/b@c.tar"),
        ("https://host?sig=SECRET", "https://host"),
        ("abfs://container@account.net/a.tar", "abfs://container@account.net/a.tar"),
        ("http://[::1/a.tar?sig=SECRET", "http://[::1/a.tar"),
    ],
)
def test_secrets_of_addresses_are_not_shown(uri, shown):
    """A signed query in a log or a manifest is a key to the bucket."""
    assert redact(uri) == shown


def test_secrets_within_messages_of_libraries_are_not_shown():
    """Libraries quote the whole address in their errors."""
    error = OSError("GET https://me:pw@host/a.tar?X-Amz-Signature=abc&x=1\nfailed")
    assert short(error) == "GET https://host/a.tar?… failed"


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A client of that server; the environment names the server and keys that mean nothing."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for index in range(12):
        client.put_object(Bucket="bucket", Key=f"set/{index:02d}.tar", Body=tar_bytes(index + 1))
    client.put_object(Bucket="bucket", Key="set/00.parquet", Body=b"no shard")
    yield client
    for item in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=item["Key"])
    client.delete_bucket(Bucket="bucket")
    client.close()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_bucket_is_listed_by_pattern_glob_and_folder_alike(s3):
    """The same shards must have the same names and versions, or a resume finds other data."""
    expected = [f"s3://bucket/set/{i:02d}.tar" for i in range(12)]
    by_folder = list_shards("s3://bucket/set")
    assert [shard.uri for shard in by_folder] == expected
    for pattern in ("s3://bucket/set/", "s3://bucket/set/*.tar", "s3://bucket/set/{00..11}.tar"):
        assert list_shards(pattern) == by_folder
    assert list_shards("s3://bucket/set/{00..02}.tar") == by_folder[:3]
    assert list_shards("s3://bucket/set/07.tar") == [by_folder[7]]
    s3.put_object(Bucket="bucket", Key="set/12.tar", Body=tar_bytes())
    assert len(list_shards("s3://bucket/set/*.tar")) == 13


def test_ranges_of_an_object_are_exactly_the_bytes(s3):
    """What is true of files has to be true of objects."""
    (shard,) = list_shards("s3://bucket/set/07.tar")
    reader, data = RangeReader(QUICK), tar_bytes(8)
    for start, stop in [(0, 1), (0, len(data)), (511, 2000), (7, 7), (len(data) - 3, len(data))]:
        assert reader.read(shard, start, stop) == data[start:stop]


def test_threads_read_objects_beside_each_other(s3):
    """Readers are threads: a connection that mixes up answers gives pictures to other labels."""
    shards = list_shards("s3://bucket/set")
    reader = RangeReader(QUICK)
    places = [(i % 12, 512 * (i % 7), 512 * (i % 7) + 300 + i) for i in range(100)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda place: reader.read(shards[place[0]], *place[1:]), places)
        for (index, start, stop), data in zip(places, found, strict=True):
            assert data == tar_bytes(index + 1)[start:stop]


def test_an_object_that_was_replaced_or_deleted_is_refused(s3):
    """Somebody will tidy up a bucket while a run of two weeks reads it."""
    shards = list_shards("s3://bucket/set/{03,04}.tar")
    reader = RangeReader(QUICK)
    for shard in shards:
        reader.read(shard, 0, 512)
    s3.put_object(Bucket="bucket", Key="set/03.tar", Body=tar_bytes(4, b"y"))
    s3.delete_object(Bucket="bucket", Key="set/04.tar")
    with pytest.raises(ShardChanged, match=r"s3://bucket/set/03\.tar was written to"):
        reader.read(shards[0], 0, 512)
    with pytest.raises(ShardUnreadable, match=r"s3://bucket/set/04\.tar is gone"):
        reader.read(shards[1], 0, 512)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s3://no-such-bucket/{00..11}.tar", "does not exist; give a folder, glob"),
        ("s3://no-such-bucket/*.tar", "no shard matches|does not exist"),
        ("s3://bucket/set/{00..13}.tar", r"2 of 14 shards do not exist.*s3://bucket/set/12\.tar"),
        ("s3://bucket/set/99.tar", r"1 of 1 shards do not exist.*s3://bucket/set/99\.tar"),
    ],
)
def test_missing_buckets_and_objects_are_named(s3, pattern, message):
    """The first thing that goes wrong in a new place is the name of the bucket."""
    with pytest.raises(ManifestError, match=message):
        list_shards(pattern)


def test_missing_credentials_are_refused_quickly_in_one_sentence(s3, monkeypatch):
    """Botocore would look for a metadata service; the user has to hear about credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(
        ManifestError, match=r"access to 's3://bucket/.*' was refused .*; check the"
    ):
        list_shards("s3://bucket/set/{00..11}.tar")
    assert time.monotonic() - started < 10


def test_wrong_credentials_are_refused_in_one_sentence(s3, s3_server):
    """A traceback of four libraries hides the one word that matters."""

    def allow_unchecked(count):
        address = f"{s3_server}/moto-api/reset-auth"
        kind = {"Content-Type": "text/plain"}
        with urllib.request.urlopen(
            urllib.request.Request(address, str(count).encode(), headers=kind)
        ):
            pass

    allow_unchecked(0)
    try:
        with pytest.raises(ManifestError, match=r"access to .* was refused .*; check the credenti"):
            list_shards("s3://bucket/set/{00..11}.tar")
    finally:
        allow_unchecked(10**9)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges and etags, for those who know the query; /flat has no ranges."""

    def send_head(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/secret") and "SIGNATURE" not in query:
            self.send_error(403)
            return None
        parts = [part for part in path.split("/")[1:] if part not in ("secret", "flat")]
        file = os.path.join(self.directory, *parts)
        if not os.path.isfile(file):
            return super().send_head()
        with open(file, "rb") as opened:
            data = opened.read()
        total, wanted = len(data), re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        partial = wanted is not None and not path.startswith("/flat")
        self.send_response(206 if partial else 200)
        if partial:
            first, last = int(wanted[1]), int(wanted[2])
            data = data[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(data) if not partial else 0}"')
        self.end_headers()
        return io.BytesIO(data)

    def log_message(self, *args):
        pass


@contextmanager
def web_server(folder):
    def handle(*args):
        return _Handler(*args, directory=str(folder))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handle)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_shards_of_a_web_server_are_listed_and_read_in_ranges(folder):
    """Public data lies on plain web servers, listed by hand or by an index page."""
    with web_server(folder) as address:
        shards = list_shards(f"{address}/{{00..11}}.tar")
        assert names(shards) == [f"{i:02d}.tar" for i in range(12)]
        data = (folder / "05.tar").read_bytes()
        assert RangeReader(QUICK).read(shards[5], 700, 2000) == data[700:2000]
        assert list_shards(f"{address}/05.tar") == [shards[5]]
        assert list_shards(f"{address}/0[45].tar") == shards[4:6]
        with pytest.raises(ManifestError, match=r"1 of 2 shards do not exist.*/nothing\.tar"):
            list_shards(f"{address}/{{00,nothing}}.tar")
        (folder / "05.tar").unlink()
        with pytest.raises(ShardUnreadable, match=r"05\.tar is gone"):
            RangeReader(QUICK).read(shards[5], 700, 2000)
        with pytest.raises(ShardUnreadable, match=r"/flat/06\.tar came whole when a part was ask"):
            RangeReader(QUICK).read(list_shards(f"{address}/flat/06.tar")[0], 700, 2000)


def test_signed_addresses_work_and_no_message_shows_the_signature(folder):
    """The query is needed to read, and must be in nothing that is printed."""
    with web_server(folder) as address:
        host = address.removeprefix("http://")
        signed = f"http://user:PASSWORD@{host}/secret/05.tar?sig=SIGNATURE"
        (shard,) = list_shards(signed)
        assert RangeReader(QUICK).read(shard, 0, 600) == (folder / "05.tar").read_bytes()[:600]
        with pytest.raises(ManifestError, match=r"access to .* was refused") as refused:
            list_shards(signed.replace("SIGNATURE", "PASSWORD"))
        (folder / "05.tar").unlink()
        with pytest.raises(ShardUnreadable, match="is gone") as gone:
            RangeReader(QUICK).read(shard, 0, 600)
    with pytest.raises(ShardUnreadable, match="in 3 attempts") as away:
        RangeReader(QUICK).read(shard, 0, 600)
    with pytest.raises(ManifestError, match="could not be listed") as nobody:
        list_shards(signed)
    for error in (refused, gone, away, nobody):
        shown = "".join(traceback.format_exception_only(error.value))
        assert "SIGNATURE" not in shown and "PASSWORD" not in shown
        assert error.value.__cause__ is None and error.value.__suppress_context__
