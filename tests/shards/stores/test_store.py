"""Checks of responses, and the clients of a process: one for each store and account."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards.errors import ShardChanged
from shards.records import ShardInfo
from shards.stores.failures.error_kinds import UnexpectedResponse
from shards.stores.retry import RetryConfig
from shards.stores.store import check_content_range, is_same_version
from shards.stores.store_clients import Stores

DATE, OTHER_DATE = "Sun, 22 Nov 2026 08:00:00 GMT", "Mon, 23 Nov 2026 08:00:00 GMT"


def shard(version):
    return ShardInfo("https://host/0.tar", 1000, version)


@pytest.mark.parametrize(
    ("version", "headers", "same"),
    [
        ("abc", {"ETag": '"abc"'}, True),
        ("abc", {"ETag": '"abd"'}, False),
        ("abc", {"ETag": '"abd"', "Last-Modified": DATE}, False),
        ("abc", {"Last-Modified": DATE}, True),  # the etag is unknown
        ("abc", {}, True),
        ("abc-1000", {"ETag": '"abd-1000"'}, False),
        ('W/"abc', {"ETag": 'W/"abc"'}, True),
        ('W/"abc', {"ETag": 'W/"abd"'}, False),
        (f"{DATE}-1000", {"Last-Modified": DATE}, True),
        (f"{DATE}-1000", {"Last-Modified": DATE, "ETag": '"abc"'}, True),
        (f"{DATE}-1000", {"Last-Modified": OTHER_DATE}, False),
        (f"{DATE}-1000", {"Last-Modified": OTHER_DATE, "ETag": '"abc"'}, False),
        ("-1000", {}, True),
        ("-1000", {"Last-Modified": DATE, "ETag": '"abc"'}, True),
    ],
)
def test_headers_are_compared_with_the_listed_version(version, headers, same):
    """A changed shard would be read as the listed one, or an unchanged one would end the run."""
    assert is_same_version(headers, shard(version)) == same


@pytest.mark.parametrize(
    ("header", "start"),
    [
        ("bytes 5-9/1000", 5),
        ("bytes 5-9/*", 5),
        ("bytes 5-7/1000", 5),
        (" bytes 0-9/1000", 0),
        (None, 0),
    ],
)
def test_a_range_may_end_early(header, start):
    """Servers may send less than requested; the rest is requested again."""
    check_content_range(header, shard("abc"), start)


@pytest.mark.parametrize("header", ["bytes 4-9/1000", "bytes */1000", "items 5-9/1000", "", None])
def test_another_range_is_refused(header):
    """Bytes of another position would be decoded."""
    with pytest.raises(UnexpectedResponse):
        check_content_range(header, shard("abc"), 5)


def test_a_range_of_a_longer_object_is_a_changed_shard():
    """Some servers name no version: the length is the only sign."""
    with pytest.raises(ShardChanged):
        check_content_range("bytes 5-9/1001", shard("-1000"), 5)


class AzureLike(MemoryFileSystem):
    """Filesystem whose account is part of the address, as for Azure."""

    protocol = "abfs"

    @staticmethod
    def _get_kwargs_from_urls(path):
        return {"account_name": path.partition("@")[2].partition(".")[0]}


def test_each_azure_account_has_its_own_client():
    """Two accounts whose names are anagrams would share one client and its credentials."""
    fsspec.register_implementation("abfs", AzureLike, clobber=True)
    stores = Stores(RetryConfig())
    first, anagram, container = (
        stores.open(f"abfs://{name}.dfs.core.windows.net/0.tar").filesystem
        for name in ("c@anna", "c@naan", "d@anna")
    )
    assert first is not anagram and first is container
    assert (first.storage_options["account_name"], anagram.storage_options["account_name"]) == (
        "anna",
        "naan",
    )
