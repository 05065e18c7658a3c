"""S3: s3fs knows the credentials and the bucket's address, the requests are made here.

So every page of a listing and every piece of a body can be retried, paced and counted by one rule,
and a range fails by itself where the object is no longer the listed one (If-Match).
"""

import os.path
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync
from fsspec.utils import glob_translate

from shards.records import ShardInfo
from shards.stores.range_check import check_content_range
from shards.stores.retry import Asker, GivenUp, RetryConfig
from shards.stores.store import Listed, Source, changed, version_of

_PIECE_BYTES = 1 << 17


def s3_options(retry: RetryConfig) -> dict[str, Any]:
    """What s3fs has to be made with. Retries are ours: botocore's own would hide every 503."""
    config = {
        "connect_timeout": retry.connect_timeout_seconds,
        "read_timeout": retry.read_timeout_seconds,
        "retries": {"max_attempts": 0},
        "max_pool_connections": 64,
    }
    return {"config_kwargs": config}


class S3Store:
    """One bucket."""

    def __init__(self, filesystem: Any, protocol: str, ask: Asker) -> None:
        self._fs, self._protocol = filesystem, protocol
        self.ask = ask

    def find(self, folder: str) -> list[Listed] | None:
        """See `Store.find`. A prefix without objects is no folder, a bucket without them is one."""
        bucket, key = self._place(folder)
        found = list(self._list(bucket, f"{key.rstrip('/')}/" if key else "", ""))
        return found or (None if key else [])

    def glob(self, pattern: str) -> list[Listed]:
        """See `Store.glob`. The bucket itself cannot be a pattern."""
        bucket, key = self._place(pattern)
        plain = re.split(r"[*?\[]", key, maxsplit=1)[0]
        deep = "/" in key[len(plain) :] or "**" in key
        matches = re.compile(glob_translate(f"{self._protocol}://{bucket}/{key}")).match
        listed = self._list(bucket, plain, "" if deep else "/")
        return [entry for entry in listed if matches(entry.uri)]

    def members(self, folder: str, prefix: str) -> list[Listed]:
        """See `Store.members`."""
        bucket, key = self._place(folder)
        return list(self._list(bucket, os.path.join(key.rstrip("/"), prefix), "/"))

    def look_up(self, uri: str) -> Listed | None:
        """See `Store.look_up`."""
        bucket, key = self._place(uri)
        if not key:
            return Listed(uri, None, "", is_folder=True)
        try:
            head = self.ask(lambda: self._call("head_object", Bucket=bucket, Key=key))
        except GivenUp as given_up:
            if given_up.trouble.kind == "gone":
                return None
            raise
        return self._listed(bucket, key, head["ContentLength"], head)

    def can_range(self, uri: str) -> bool:  # noqa: ARG002 - it is part of what S3 is
        """See `Store.can_range`."""
        return True

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[Source]:  # noqa: ARG002
        """See `Store.one_pass`."""
        yield self

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `Source.fetch`."""
        sync(self._fs.loop, self._fetch, shard, start, stop, sink)

    async def _fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        bucket, key = self._place(shard.uri)
        answer = await self._request(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=f"bytes={start}-{stop - 1}",
            IfMatch=shard.version,
        )
        async with answer["Body"] as body:
            if version_of(answer, None) != shard.version:  # not everyone knows If-Match
                raise changed(shard)
            check_content_range(answer.get("ContentRange"), shard, start)
            wanted = len(sink) + stop - start
            while len(sink) < wanted and (piece := await body.read(_PIECE_BYTES)):
                sink += piece[: wanted - len(sink)]

    def _list(self, bucket: str, prefix: str, delimiter: str) -> Iterator[Listed]:
        where = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
        while True:
            page = self.ask(lambda: self._call("list_objects_v2", **where))  # noqa: B023
            for item in page.get("Contents", ()):
                yield self._listed(bucket, item["Key"], item["Size"], item)
            for item in page.get("CommonPrefixes", ()):
                name = item["Prefix"].rstrip("/")
                yield Listed(f"{self._protocol}://{bucket}/{name}", None, "", is_folder=True)
            if not page.get("IsTruncated"):
                return
            where |= {"ContinuationToken": page["NextContinuationToken"]}

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = sync(self._fs.loop, self._request, method, **arguments)
        return result

    async def _request(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One request, sent once, with the settings that s3fs was given for all of them."""
        await self._fs.set_session()
        client = await self._fs.get_s3(arguments["Bucket"])
        call = getattr(client, method)
        result: dict[str, Any] = await call(**self._fs._get_s3_method_kwargs(call, **arguments))
        return result

    def _place(self, uri: str) -> tuple[str, str]:
        bucket, key, _ = self._fs.split_path(uri)
        return bucket, key

    def _listed(self, bucket: str, key: str, num_bytes: int, fields: dict[str, Any]) -> Listed:
        uri = f"{self._protocol}://{bucket}/{key}"
        return Listed(uri, num_bytes, version_of(fields, num_bytes))
