"""The Hugging Face Hub: listed by its own filesystem, read from where that says the bytes lie.

That filesystem would ask five times by itself, hide why, and begin again where a body broke. Every
answer of the Hub names the version by which it is listed, so no read has to ask for it.
"""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from aiohttp import ClientResponse
from fsspec.asyn import sync

from shards.records import ShardInfo
from shards.stores.fsspec_store import OtherStore
from shards.stores.http_store import range_of, send, take
from shards.stores.range_check import check_content_range
from shards.stores.retry import Asker, RetryConfig
from shards.stores.store import Listed

# Where answers name no version it is asked for: at most so often, for the Hub counts requests.
_CHECK_SECONDS = 30.0
_FOLDERS = {"dataset": "datasets/", "space": "spaces/"}


class HubStore(OtherStore):
    """All data sets, or all models of one owner. `web` is a filesystem for plain addresses."""

    def __init__(
        self, filesystem: Any, web: Any, root: str, retry: RetryConfig, ask: Asker
    ) -> None:
        super().__init__(filesystem, root, retry, ask)
        self._web = web
        self._checked: dict[str, float] = {}
        self._other_words = False  # whether answers name versions otherwise than listings do

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `Source.fetch`."""
        address = self._address(shard.uri)
        headers = dict(self._fs._api._build_hf_headers())
        headers["Range"] = f"bytes={start}-{stop - 1}"
        answer = sync(self._web.loop, send, self._web, "GET", address, headers)
        try:
            self._compare(shard, _version(answer))
            check_content_range(range_of(answer), shard, start)
            sync(self._web.loop, take, answer, len(sink) + stop - start, sink)
        finally:
            self._web.loop.call_soon_threadsafe(answer.close)

    def _compare(self, shard: ShardInfo, version: str | None) -> None:
        if version == shard.version:
            return
        now = time.monotonic()
        asked = self._checked.get(shard.uri, float("-inf"))
        if version is None or self._other_words:
            if now - asked < _CHECK_SECONDS:
                return
            self.check_version(shard)
        else:
            self.check_version(shard)
            self._other_words = True  # it has not changed
        self._checked[shard.uri] = now

    def _address(self, uri: str) -> str:
        """Where the bytes of a file are asked for. The first time, the Hub is asked what it is."""
        place = self._fs.resolve_path(uri)
        if hasattr(place, "bucket_id"):
            return f"{self._fs.endpoint}/buckets/{place.bucket_id}/resolve/{quote(place.path)}"
        repository = _FOLDERS.get(place.repo_type, "") + place.repo_id
        revision = quote(place.revision, safe="")
        path = quote(place.path_in_repo)
        return f"{self._fs.endpoint}/{repository}/resolve/{revision}/{path}"

    def _info(self, uri: str) -> Mapping[str, Any]:
        # Otherwise it would answer from what it heard before, and without the version.
        info: Mapping[str, Any] = self._fs.info(uri, refresh=True, expand_info=True)
        return _with_tag(info)

    def _listed(self, info: Mapping[str, Any]) -> Listed:
        return super()._listed(_with_tag(info))


def _with_tag(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the etag of the Hub's answers: the sha256 of a large file, the git name of others."""
    return {**info, "etag": (info.get("lfs") or {}).get("sha256") or info.get("blob_id")}


def _version(answer: ClientResponse) -> str | None:
    """The etag by which the Hub itself, not who it sends us to, names the file."""
    for part in (*answer.history, answer):
        if tag := part.headers.get("X-Linked-Etag"):
            return tag.removeprefix("W/").strip('"')
    tag = None if answer.history else answer.headers.get("ETag")
    return tag.removeprefix("W/").strip('"') if tag else None
