"""S3: s3fs provides credentials and endpoint, requests are sent through its client one by one.

So each page of a listing and each piece of a body is retried, limited and counted by one rule, and
a range request fails if the object is no longer the listed one (If-Match).
"""

import os.path
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync
from fsspec.utils import glob_translate

from shards.records import ShardInfo
from shards.stores.retry import RetriesExhausted, RetryingClient
from shards.stores.store import (
    ListedFile,
    RangeSource,
    changed_error,
    check_content_range,
    version_of,
)

_PIECE_BYTES = 1 << 17


class S3Store:
    """One bucket."""

    def __init__(self, filesystem: Any, protocol: str, client: RetryingClient) -> None:
        self.filesystem, self._protocol = filesystem, protocol
        self.client = client

    def find(self, folder: str) -> list[ListedFile] | None:
        """See `Store.find`. A prefix without objects is not a folder; an empty bucket is one."""
        bucket, key = self._split(folder)
        found = list(self._list(bucket, f"{key.rstrip('/')}/" if key else "", ""))
        return found or (None if key else [])

    def glob(self, pattern: str) -> list[ListedFile]:
        """See `Store.glob`. The name of the bucket cannot be a pattern."""
        bucket, key = self._split(pattern)
        plain = re.split(r"[*?\[]", key, maxsplit=1)[0]
        deep = "/" in key[len(plain) :] or "**" in key
        matches = re.compile(glob_translate(f"{self._protocol}://{bucket}/{key}")).match
        listed = self._list(bucket, plain, "" if deep else "/")
        return [entry for entry in listed if matches(entry.uri)]

    def list_folder(self, folder: str, prefix: str) -> list[ListedFile]:
        """See `Store.list_folder`."""
        bucket, key = self._split(folder)
        return list(self._list(bucket, os.path.join(key.rstrip("/"), prefix), "/"))

    def look_up(self, uri: str) -> ListedFile | None:
        """See `Store.look_up`."""
        bucket, key = self._split(uri)
        if not key:  # a pattern is not the name of a bucket
            is_name = not re.search(r"[{}*?\[\]]", bucket)
            return ListedFile(uri, None, "", is_folder=True) if is_name else None
        try:
            head = self.client.call(lambda: self._call("head_object", Bucket=bucket, Key=key))
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind == "gone":
                return None
            raise
        return self._listed(bucket, key, head["ContentLength"], head)

    def can_range(self, uri: str) -> bool:  # noqa: ARG002
        """See `Store.can_range`. Ranges are part of S3."""
        return True

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[RangeSource]:  # noqa: ARG002
        """See `Store.one_pass`."""
        yield self

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `RangeSource.fetch`."""
        sync(self.filesystem.loop, self._fetch, shard, start, stop, sink)

    async def _fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        bucket, key = self._split(shard.uri)
        response = await self._request(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=f"bytes={start}-{stop - 1}",
            IfMatch=shard.version,
        )
        async with response["Body"] as body:
            if version_of(response, None) != shard.version:  # some servers ignore If-Match
                raise changed_error(shard)
            check_content_range(response.get("ContentRange"), shard, start)
            wanted = len(sink) + stop - start
            while len(sink) < wanted and (piece := await body.read(_PIECE_BYTES)):
                sink += piece[: wanted - len(sink)]

    def _list(self, bucket: str, prefix: str, delimiter: str) -> Iterator[ListedFile]:
        where = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
        while True:
            page = self.client.call(lambda: self._call("list_objects_v2", **where))  # noqa: B023
            for item in page.get("Contents", ()):
                yield self._listed(bucket, item["Key"], item["Size"], item)
            for item in page.get("CommonPrefixes", ()):
                name = item["Prefix"].rstrip("/")
                yield ListedFile(f"{self._protocol}://{bucket}/{name}", None, "", is_folder=True)
            if not page.get("IsTruncated"):
                return
            where |= {"ContinuationToken": page["NextContinuationToken"]}

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = sync(self.filesystem.loop, self._request, method, **arguments)
        return result

    async def _request(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a request once, with the settings that s3fs applies to all requests."""
        await self.filesystem.set_session()
        client = await self.filesystem.get_s3(arguments["Bucket"])
        call = getattr(client, method)
        result: dict[str, Any] = await call(
            **self.filesystem._get_s3_method_kwargs(call, **arguments)
        )
        return result

    def _split(self, uri: str) -> tuple[str, str]:
        bucket, key, _ = self.filesystem.split_path(uri)
        return bucket, key

    def _listed(self, bucket: str, key: str, num_bytes: int, fields: dict[str, Any]) -> ListedFile:
        uri = f"{self._protocol}://{bucket}/{key}"
        return ListedFile(uri, num_bytes, version_of(fields, num_bytes))
