"""Stores on loopback, shared by the tests of the data plane."""

import fsspec
import pytest

from shards.stores.retry import RetryConfig
from shards.stores.store_clients import Stores
from tests.hub import hub
from tests.stores import connect, s3_server, tar_bytes, use_s3


@pytest.fixture(scope="session")
def s3_address():
    """Address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture(scope="session")
def s3_client(s3_address):
    """Client of that server; its bucket "shelf" holds set/00.tar .. set/11.tar. Read only."""
    client = connect(s3_address)
    client.create_bucket(Bucket="shelf")
    for index in range(12):
        client.put_object(Bucket="shelf", Key=f"set/{index:02d}.tar", Body=tar_bytes(index + 1))
    client.put_object(Bucket="shelf", Key="set/00.parquet", Body=b"no shard")
    yield client
    client.close()


@pytest.fixture
def s3(s3_client, s3_address, monkeypatch):
    """Client of the S3 server, which the environment names."""
    use_s3(s3_address, monkeypatch)
    return s3_client


@pytest.fixture(scope="session")
def s3_stores(s3_client):
    """Stores with an S3 client, for tests that also use `s3`."""
    return Stores(RetryConfig(num_attempts=3, first_wait_seconds=0.0, longest_wait_seconds=0.0))


@pytest.fixture
def folder(tmp_path):
    """Folder of 00.tar .. 11.tar, a shard in a sub-folder, and other files."""
    for index in range(12):
        (tmp_path / f"{index:02d}.tar").write_bytes(tar_bytes(index + 1))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.TAR").write_bytes(tar_bytes())
    (tmp_path / "00.parquet").write_bytes(b"no shard")
    (tmp_path / "readme.txt").write_bytes(b"no shard")
    return tmp_path


@pytest.fixture
def fake_hub(monkeypatch):
    """Hub with ten large files and a small one; the filesystem of hf:// uses it."""
    files = {f"set/{index}.tar": tar_bytes(index + 2) for index in range(10)}
    with hub(files | {"small.tar": tar_bytes()}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        yield server
    fsspec.get_filesystem_class("hf").clear_instance_cache()
