"""Packs from and to stores: a real S3 server, and a plain fsspec store that fails."""

import io
import json
import re
import tempfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards.errors import ManifestError, PackFailed, UserError
from shards.pack.image_entries import entries_from_list
from shards.pack.pack import PackConfig, pack
from shards.pack.sources.folder_entries import entries_from_folder
from shards.pack.table_entries import entries_from_parquet
from shards.stores import uploads
from shards.stores.retry import RetryConfig
from shards.stores.shard_listing import list_shards
from tests.shards.pack.helpers import Stop, StopAfter
from tests.shards.pack.test_pack import jpeg, make_folder, shard_bytes

CONFIG = PackConfig(samples_per_shard=4)
QUICK = RetryConfig(num_attempts=3, first_wait_seconds=0.0, longest_wait_seconds=0.0)


@pytest.fixture
def bucket(s3, request):
    """Name of an empty bucket for this test."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name)[:60].strip("-")
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def images(tmp_path):
    """Folder of eleven images in two sub-folders."""
    files = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(i) for i in range(11)}
    return make_folder(tmp_path / "images", files)


def objects(s3, bucket, prefix):
    """Return name -> bytes of all objects below a prefix."""
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
    return {
        entry["Key"][len(prefix) + 1 :]: s3.get_object(Bucket=bucket, Key=entry["Key"])[
            "Body"
        ].read()
        for entry in listed
    }


def put_folder(s3, bucket, folder):
    for path in folder.rglob("*.*"):
        key = f"{folder.name}/{path.relative_to(folder)}"
        s3.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())


def test_a_pack_into_a_bucket_has_the_bytes_of_a_local_pack(
    s3, s3_stores, bucket, images, tmp_path, monkeypatch
):
    """A data set would depend on its store."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = entries_from_folder(images)
    pack(source, tmp_path / "here", CONFIG)
    report = pack(source, f"s3://{bucket}/there", CONFIG)
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert objects(s3, bucket, "there") == here
    assert (report.num_samples, report.num_shards, report.out) == (11, 3, f"s3://{bucket}/there")
    assert len(list_shards(f"s3://{bucket}/there", s3_stores)) == 3
    assert pack(source, f"s3://{bucket}/there/", CONFIG).reused
    assert not list(tmp_path.glob("streamssl-pack-*"))


def test_a_stopped_pack_into_a_bucket_resumes(s3, s3_stores, bucket, images):
    """Finished shards would be uploaded again, or an incomplete pack read as data."""
    source, out = entries_from_folder(images), f"s3://{bucket}/out"
    with pytest.raises(Stop):
        pack(source, out, CONFIG, progress=StopAfter(9))
    assert set(objects(s3, bucket, "out")) == {
        *("shard-000000.tar", "shard-000000.json", "shard-000001.tar", "shard-000001.json"),
        "pack.unfinished.json",
    }
    for pattern in (out, f"{out}/*.tar", f"s3://{bucket}/*/*.tar"):
        with pytest.raises(ManifestError, match="holds an unfinished pack"):
            list_shards(pattern, s3_stores)
    first = s3.head_object(Bucket=bucket, Key="out/shard-000000.tar")["LastModified"]
    assert pack(source, out, CONFIG).num_found == 2
    assert s3.head_object(Bucket=bucket, Key="out/shard-000000.tar")["LastModified"] == first
    with pytest.raises(UserError, match="is not a complete pack of these images"):
        pack(source, out, PackConfig(samples_per_shard=5))


def test_a_missing_bucket_is_named(s3, images):
    """The mistake must be found before any image is read."""
    with pytest.raises(PackFailed, match=r"s3://nosuchbucket1/x could not be .*; check address"):
        pack(entries_from_folder(images), "s3://nosuchbucket1/x", CONFIG)
    with pytest.raises(ManifestError, match="is on the web; shards are written to a folder or to"):
        pack(entries_from_folder(images), "http://127.0.0.1/x", CONFIG)


def test_a_folder_of_a_bucket_is_packed_like_a_local_one(s3, bucket, images, tmp_path):
    """A bucket would have to be copied to a disk first."""
    (images / "a" / "notes.txt").write_text("x")
    (images / "a" / "page.jpg").write_text("<html>")
    put_folder(s3, bucket, images)
    source = entries_from_folder(f"s3://{bucket}/images")
    assert source.class_names == ("a", "b") and source.is_far
    report = pack(source, tmp_path / "far", CONFIG)
    assert report.skipped == {"not_an_image": 2}
    pack(entries_from_folder(images), tmp_path / "near", CONFIG)
    assert shard_bytes(tmp_path / "far") == shard_bytes(tmp_path / "near")


def test_a_list_or_table_in_a_bucket_names_objects_but_no_local_files(s3, bucket, tmp_path):
    """A list from elsewhere could read private files of this machine."""
    private = make_folder(tmp_path / "private", {"me.jpg": jpeg(99)}) / "me.jpg"
    for index in range(3):
        s3.put_object(Bucket=bucket, Key=f"lists/p/{index}.jpg", Body=jpeg(index))
    names = ["p/0.jpg", f"s3://{bucket}/lists/p/1.jpg", "p/none.jpg", str(private), "p/2.jpg"]
    s3.put_object(Bucket=bucket, Key="lists/list.txt", Body="\n".join(names).encode())
    table = io.BytesIO()
    pq.write_table(pa.table({"path": names}), table)
    s3.put_object(Bucket=bucket, Key="lists/table.parquet", Body=table.getvalue())
    listed = entries_from_list(f"s3://{bucket}/lists/list.txt")
    rows = entries_from_parquet([f"s3://{bucket}/lists/table.parquet"])
    for number, source in enumerate((listed, rows)):
        report = pack(source, tmp_path / str(number))
        assert report.num_samples == 3
        assert report.skipped == {"bad_address": 1, "not_found": 1}
    assert shard_bytes(tmp_path / "0") == shard_bytes(tmp_path / "1")


class PlainStore(MemoryFileSystem):
    """Store without atomic uploads, which fails as `plan` says."""

    protocol = "plain"
    store, pseudo_dirs = {}, [""]
    plan, calls = [], []

    def put_file(self, lpath, rpath, **options):
        self.calls.append(("put", rpath))
        if self.plan:
            raise self.plan.pop(0)
        return super().put_file(lpath, rpath, **options)

    def pipe_file(self, path, value, **options):
        self.calls.append(("put", path))
        return super().pipe_file(path, value, **options)

    def mv(self, path1, path2, **options):
        self.calls.append(("mv", path2))
        return super().mv(path1, path2, **options)


@pytest.fixture
def plain_store():
    """Empty plain store without faults."""
    fsspec.register_implementation("plain", PlainStore, clobber=True)
    for container in (PlainStore.store, PlainStore.plan, PlainStore.calls):
        container.clear()
    return fsspec.filesystem("plain", skip_instance_cache=True)


def test_uploads_to_a_store_without_atomic_puts_are_renamed_when_complete(plain_store, images):
    """Half an upload would be taken for a whole shard; a leftover draft for a foreign file."""
    plain_store.pipe_file("plain://data/out/.pack.unfinished.json.part", b"half")
    PlainStore.calls.clear()
    pack(entries_from_folder(images), "plain://data/out", CONFIG)
    puts = [path for call, path in PlainStore.calls if call == "put"]
    moves = [path for call, path in PlainStore.calls if call == "mv"]
    assert len(puts) == len(moves) > 3
    assert all(".part" in path for path in puts) and not any(".part" in path for path in moves)
    left = {name.rpartition("/")[2] for name in plain_store.find("plain://data/out")}
    assert {"shard-000000.tar", "pack.json", "classes.txt"} < left
    assert not any(name.startswith(".") or "unfinished" in name for name in left)
    saved = json.loads(plain_store.cat_file("plain://data/out/pack.json"))
    assert saved["report"]["num_samples"] == 11
    sizes = {shard["name"]: shard["num_bytes"] for shard in saved["shards"]}
    assert sizes == {name: plain_store.size(f"plain://data/out/{name}") for name in sizes}


def test_a_failed_upload_is_repeated(plain_store, images, monkeypatch):
    """One reset would end a day of uploads."""
    monkeypatch.setattr(uploads, "RetryConfig", lambda: QUICK)
    PlainStore.plan.extend([ConnectionResetError("reset"), TimeoutError()])
    assert pack(entries_from_folder(images), "plain://data/out", CONFIG).num_samples == 11
    PlainStore.plan.extend([ConnectionResetError("reset by peer")] * 3)
    message = r"plain://data/two could not be written to in 3 attempts \(reset by peer\).*goes on"
    with pytest.raises(PackFailed, match=message):
        pack(entries_from_folder(images), "plain://data/two", CONFIG)
