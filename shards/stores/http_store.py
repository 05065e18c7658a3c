"""Web servers: ranges are streamed through the session of fsspec's own HTTP filesystem.

Each answer is compared with the listed length, etag and date. Servers without range requests are
read from the first byte to the last.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientResponse
from fsspec.asyn import sync

from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.failures.error_kinds import UnexpectedResponse
from shards.stores.fsspec_store import FsspecStore
from shards.stores.retry import RetriesExhausted, RetryConfig, RetryingClient
from shards.stores.store import (
    ListedFile,
    RangeSource,
    changed_error,
    check_content_range,
    has_tag,
    is_same_version,
    version_of,
)

_PIECE_BYTES = 1 << 17


class HttpStore(FsspecStore):
    """One host."""

    def __init__(
        self, filesystem: Any, root: str, retry: RetryConfig, client: RetryingClient
    ) -> None:
        super().__init__(filesystem, root, retry, client)
        self._with_ranges: dict[str, bool] = {}

    def _is_folder(self, name: str) -> bool:
        """Return True for a page with links; each address exists as a file, too."""
        return bool(self.client.call(lambda: self.filesystem.isdir(name)))

    def look_up(self, uri: str) -> ListedFile | None:
        """See `Store.look_up`. Sends HEAD; if that is refused, requests one byte."""
        try:
            found: ListedFile = self.client.call(
                lambda: sync(self.filesystem.loop, self._look_up, uri)
            )
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind == "gone":
                return None
            raise
        return found

    def can_range(self, uri: str) -> bool:
        """See `Store.can_range`. Requests one byte, once for each folder."""
        folder = redact(uri).rpartition("/")[0]
        if folder not in self._with_ranges:
            status = self.client.call(
                lambda: sync(self.filesystem.loop, self._status_of_a_byte, uri)
            )
            self._with_ranges[folder] = status == 206
        return self._with_ranges[folder]

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `RangeSource.fetch`."""
        sync(self.filesystem.loop, self._fetch, shard, start, stop, sink)

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[RangeSource]:
        """See `Store.one_pass`."""
        if self.can_range(shard.uri):
            yield self
            return
        stream = SequentialStream(self, shard)
        try:
            yield stream
        finally:
            self.filesystem.loop.call_soon_threadsafe(stream.close)

    async def get(self, shard: ShardInfo, byte_range: str = "") -> ClientResponse:
        """Return the response to a GET whose headers do not contradict the listed version."""
        headers = {"Range": byte_range} if byte_range else {}
        if has_tag(shard) and not shard.version.startswith("W/"):  # a weak one never matches
            headers["If-Match"] = f'"{shard.version}"'
        response = await send(self.filesystem, "GET", shard.uri, headers)
        if not is_same_version(response.headers, shard):
            response.close()
            raise changed_error(shard)
        return response

    @property
    def loop(self) -> Any:
        """Event loop of the filesystem."""
        return self.filesystem.loop

    async def _fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        async with await self.get(shard, f"bytes={start}-{stop - 1}") as response:
            check_content_range(content_range(response), shard, start)
            await read_until(response, len(sink) + stop - start, sink)

    async def _look_up(self, uri: str) -> ListedFile:
        async with await send(self.filesystem, "HEAD", uri, {}, check=False) as head:
            size = head.headers.get("Content-Length")
            if head.status == 200 and size is not None:
                return ListedFile(uri, int(size), version_of(head.headers, int(size)))
        async with await send(self.filesystem, "GET", uri, {"Range": "bytes=0-0"}) as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = total if response.status == 206 else response.headers.get("Content-Length", "")
            num_bytes = int(size) if size.isdigit() else None
            return ListedFile(uri, num_bytes, version_of(response.headers, num_bytes))

    async def _status_of_a_byte(self, uri: str) -> int:
        async with await send(self.filesystem, "GET", uri, {"Range": "bytes=0-0"}) as response:
            return response.status


class SequentialStream:
    """One GET of a whole shard, read forward; after a failure it is sent again and skipped over."""

    def __init__(self, store: HttpStore, shard: ShardInfo) -> None:
        self._store, self._shard = store, shard
        self._response: ClientResponse | None = None
        self._position: int | None = None  # offset of the next byte, if it is known

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `RangeSource.fetch`."""
        assert shard is self._shard, "a pass is over one shard"
        sync(self._store.loop, self._fetch, start, stop, sink)

    def close(self) -> None:
        """Close the connection. To be called in the event loop."""
        if self._response is not None:
            self._response.close()
        self._response, self._position = None, None

    async def _fetch(self, start: int, stop: int, sink: bytearray) -> None:
        if self._response is None or self._position != start:
            self.close()
            self._response = await self._store.get(self._shard)
            await skip(self._response, start)
        self._position = None
        await read_until(self._response, len(sink) + stop - start, sink)
        self._position = stop


async def send(
    filesystem: Any, method: str, uri: str, headers: Mapping[str, str], *, check: bool = True
) -> ClientResponse:
    """Send a request once; `check` raises if the response does not hold bytes of a file."""
    session = await filesystem.set_session()
    response: ClientResponse = await session.request(
        method, filesystem.encode_url(uri), headers=headers, **filesystem.kwargs
    )
    if check and response.status not in (200, 206):
        response.raise_for_status()
        response.close()
        raise UnexpectedResponse(f"the server answered with status {response.status}")
    return response


def content_range(response: ClientResponse) -> str | None:
    """Return the Content-Range of a partial response, None for a response with all bytes."""
    if response.status != 206:
        return None
    header = response.headers.get("Content-Range")
    if header is None:
        raise UnexpectedResponse("a part came without Content-Range")
    return header


async def read_until(response: ClientResponse, wanted: int, sink: bytearray) -> None:
    """Read until `sink` holds `wanted` bytes. Raises EOFError if the body ends before."""
    while len(sink) < wanted:
        piece = await response.content.read(min(_PIECE_BYTES, wanted - len(sink)))
        if not piece:
            raise EOFError(f"the body ended {wanted - len(sink)} bytes too early")
        sink += piece


async def skip(response: ClientResponse, num_bytes: int) -> None:
    """Read and drop `num_bytes`. Raises EOFError if the body ends before."""
    skipped = 0
    while skipped < num_bytes:
        piece = await response.content.read(min(_PIECE_BYTES, num_bytes - skipped))
        if not piece:
            raise EOFError(f"{skipped} bytes came where {num_bytes} had come before")
        skipped += len(piece)
