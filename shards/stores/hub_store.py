"""The Hugging Face Hub: listed by its own filesystem, read from the addresses that it resolves.

Its filesystem would retry five times without the cause, and restart a broken body from the
beginning. Each response of the Hub names the listed version, so a read needs no extra request.
"""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from aiohttp import ClientResponse
from fsspec.asyn import sync

from shards.records import ShardInfo
from shards.stores.fsspec_store import FsspecStore
from shards.stores.http_store import content_range, read_until, send
from shards.stores.retry import RetryConfig, RetryingClient
from shards.stores.store import ListedFile, check_content_range

# Minimum time between version requests for responses without a version: the Hub limits requests.
_CHECK_SECONDS = 30.0
_FOLDERS = {"dataset": "datasets/", "space": "spaces/"}


class HubStore(FsspecStore):
    """Data sets or models of one owner. `web` is a filesystem for plain addresses."""

    def __init__(
        self, filesystem: Any, web: Any, root: str, retry: RetryConfig, client: RetryingClient
    ) -> None:
        super().__init__(filesystem, root, retry, client)
        self._web = web
        self._checked: dict[str, float] = {}
        # True if responses name versions in another form than listings.
        self._versions_differ = False

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `RangeSource.fetch`."""
        address = self._address(shard.uri)
        headers = dict(self.filesystem._api._build_hf_headers())
        headers["Range"] = f"bytes={start}-{stop - 1}"
        response = sync(self._web.loop, send, self._web, "GET", address, headers)
        try:
            self._check_response_version(shard, _version(response))
            check_content_range(content_range(response), shard, start)
            sync(self._web.loop, read_until, response, len(sink) + stop - start, sink)
        finally:
            self._web.loop.call_soon_threadsafe(response.close)

    def _check_response_version(self, shard: ShardInfo, version: str | None) -> None:
        if version == shard.version:
            return
        now = time.monotonic()
        checked_at = self._checked.get(shard.uri, float("-inf"))
        if version is None or self._versions_differ:
            if now - checked_at < _CHECK_SECONDS:
                return
            self.check_version(shard)
        else:
            self.check_version(shard)
            self._versions_differ = True  # the shard is unchanged, so the forms differ
        self._checked[shard.uri] = now

    def _address(self, uri: str) -> str:
        """Return the download address of a file. The first call sends a request to the Hub."""
        place = self.filesystem.resolve_path(uri)
        if hasattr(place, "bucket_id"):
            return (
                f"{self.filesystem.endpoint}/buckets/{place.bucket_id}/resolve/{quote(place.path)}"
            )
        repository = _FOLDERS.get(place.repo_type, "") + place.repo_id
        revision = quote(place.revision, safe="")
        path = quote(place.path_in_repo)
        return f"{self.filesystem.endpoint}/{repository}/resolve/{revision}/{path}"

    def _info(self, uri: str) -> Mapping[str, Any]:
        # Without these options it would answer from its cache, and without the version.
        info: Mapping[str, Any] = self.filesystem.info(uri, refresh=True, expand_info=True)
        return _with_tag(info)

    def _listed(self, info: Mapping[str, Any]) -> ListedFile:
        return super()._listed(_with_tag(info))


def _with_tag(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the etag of the Hub's responses: sha256 of a large file, git's name of a small one."""
    return {**info, "etag": (info.get("lfs") or {}).get("sha256") or info.get("blob_id")}


def _version(response: ClientResponse) -> str | None:
    """Return the etag that the Hub itself sent, not the server that it redirects to."""
    for part in (*response.history, response):
        if tag := part.headers.get("X-Linked-Etag"):
            return tag.removeprefix("W/").strip('"')
    tag = None if response.history else response.headers.get("ETag")
    return tag.removeprefix("W/").strip('"') if tag else None
