"""Stores on loopback that tests of this plane share."""

import fsspec
import pytest

from shards.stores.retry import RetryConfig
from shards.stores.store_clients import Stores
from tests.hub import hub
from tests.stores import connect, s3_server, tar_bytes, use_s3


@pytest.fixture(scope="session")
def s3_address():
    """An S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture(scope="session")
def s3_client(s3_address):
    """A client of that server, and the shelf: set/00.tar .. set/11.tar, not to be changed."""
    client = connect(s3_address)
    client.create_bucket(Bucket="shelf")
    for index in range(12):
        client.put_object(Bucket="shelf", Key=f"set/{index:02d}.tar", Body=tar_bytes(index + 1))
    client.put_object(Bucket="shelf", Key="set/00.parquet", Body=b"no shard")
    yield client
    client.close()


@pytest.fixture
def s3(s3_client, s3_address, monkeypatch):
    """A client of the S3 server; the environment names the server."""
    use_s3(s3_address, monkeypatch)
    return s3_client


@pytest.fixture(scope="session")
def s3_stores(s3_client):
    """Stores that have an S3 client already, for tests that ask for `s3` too."""
    return Stores(RetryConfig(num_attempts=3, first_wait_seconds=0.0, longest_wait_seconds=0.0))


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


@pytest.fixture
def fake_hub(monkeypatch):
    """A Hub with ten large files and a small one, and a fresh filesystem that finds it."""
    files = {f"set/{index}.tar": tar_bytes(index + 2) for index in range(10)}
    with hub(files | {"small.tar": tar_bytes()}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        yield server
    fsspec.get_filesystem_class("hf").clear_instance_cache()
