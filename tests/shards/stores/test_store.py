"""Whether an answer holds what was asked for: every header may be missing, none may disagree."""

import pytest

from shards.errors import ShardChanged
from shards.records import ShardInfo
from shards.stores.retry import UnexpectedResponse
from shards.stores.store import check_content_range, is_same_version

DATE, OTHER_DATE = "Sun, 22 Nov 2026 08:00:00 GMT", "Mon, 23 Nov 2026 08:00:00 GMT"


def shard(version):
    return ShardInfo("https://host/0.tar", 1000, version)


@pytest.mark.parametrize(
    ("version", "headers", "same"),
    [
        ("abc", {"ETag": '"abc"'}, True),
        ("abc", {"ETag": '"abd"'}, False),
        ("abc", {"ETag": '"abd"', "Last-Modified": DATE}, False),
        ("abc", {"Last-Modified": DATE}, True),  # it says nothing of the etag
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
def test_versions_are_held_to_what_was_listed(version, headers, same):
    """A changed shard that is taken for the listed one is wrong data; an unchanged one that is
    refused ends a run for nothing."""
    assert is_same_version(headers, shard(version)) == same


@pytest.mark.parametrize(
    ("said", "start"),
    [
        ("bytes 5-9/1000", 5),
        ("bytes 5-9/*", 5),
        ("bytes 5-7/1000", 5),
        (" bytes 0-9/1000", 0),
        (None, 0),
    ],
)
def test_a_range_that_begins_where_it_should_is_right_as_far_as_it_goes(said, start):
    """Servers may send less than they were asked for."""
    check_content_range(said, shard("abc"), start)


@pytest.mark.parametrize("said", ["bytes 4-9/1000", "bytes */1000", "items 5-9/1000", "", None])
def test_another_range_is_a_wrong_answer(said):
    """Its bytes would be taken for those of another place."""
    with pytest.raises(UnexpectedResponse):
        check_content_range(said, shard("abc"), 5)


def test_a_range_of_a_longer_object_is_of_another_object():
    """Even where nothing else tells its version."""
    with pytest.raises(ShardChanged):
        check_content_range("bytes 5-9/1001", shard("-1000"), 5)
