"""Web servers: ranges are streamed through the session of fsspec's own HTTP filesystem.

Every answer is held against the listed length, etag and date. Servers that know no ranges can be
read too, from the first byte to the last.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientResponse, ClientTimeout
from fsspec.asyn import sync

from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.fsspec_store import OtherStore
from shards.stores.range_check import check_content_range, has_tag, is_same_version
from shards.stores.retry import Asker, GivenUp, RetryConfig, WrongAnswer
from shards.stores.store import Listed, Source, changed, version_of

_PIECE_BYTES = 1 << 17


def client_timeout(retry: RetryConfig) -> ClientTimeout:
    """How long to wait for a connection, and for the next bytes; however long all of them take."""
    return ClientTimeout(
        total=None,
        sock_connect=retry.connect_timeout_seconds,
        sock_read=retry.read_timeout_seconds,
    )


def http_options(retry: RetryConfig) -> dict[str, Any]:
    """What fsspec's HTTP filesystem has to be made with: time-outs, and bytes as they are stored.

    Some servers say of a .tar.gz that it is a tar in gzip encoding; it is wanted as it is.
    """
    return {
        "client_kwargs": {
            "timeout": client_timeout(retry),
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
    }


class HttpStore(OtherStore):
    """One host."""

    def __init__(self, filesystem: Any, root: str, retry: RetryConfig, ask: Asker) -> None:
        super().__init__(filesystem, root, retry, ask)
        self._with_ranges: dict[str, bool] = {}

    def look_up(self, uri: str) -> Listed | None:
        """See `Store.look_up`: by HEAD, or, where that is refused, by asking for one byte."""
        try:
            found: Listed = self.ask(lambda: sync(self._fs.loop, self._look_up, uri))
        except GivenUp as given_up:
            if given_up.trouble.kind == "gone":
                return None
            raise
        return found

    def can_range(self, uri: str) -> bool:
        """See `Store.can_range`. One byte is asked for, once for every folder."""
        folder = redact(uri).rpartition("/")[0]
        if folder not in self._with_ranges:
            status = self.ask(lambda: sync(self._fs.loop, self._status_of_a_byte, uri))
            self._with_ranges[folder] = status == 206
        return self._with_ranges[folder]

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `Source.fetch`."""
        sync(self._fs.loop, self._fetch, shard, start, stop, sink)

    @contextmanager
    def one_pass(self, shard: ShardInfo) -> Iterator[Source]:
        """See `Store.one_pass`."""
        if self.can_range(shard.uri):
            yield self
            return
        body = Body(self, shard)
        try:
            yield body
        finally:
            self._fs.loop.call_soon_threadsafe(body.close)

    async def get(self, shard: ShardInfo, byte_range: str = "") -> ClientResponse:
        """The answer to a GET, which is of the listed version as far as its headers tell."""
        headers = {"Range": byte_range} if byte_range else {}
        if has_tag(shard) and not shard.version.startswith("W/"):  # a weak one never matches
            headers["If-Match"] = f'"{shard.version}"'
        answer = await send(self._fs, "GET", shard.uri, headers)
        if not is_same_version(answer.headers, shard):
            answer.close()
            raise changed(shard)
        return answer

    @property
    def loop(self) -> Any:
        """The loop that all of it runs in."""
        return self._fs.loop

    async def _fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        async with await self.get(shard, f"bytes={start}-{stop - 1}") as answer:
            check_content_range(range_of(answer), shard, start)
            await take(answer, len(sink) + stop - start, sink)

    async def _look_up(self, uri: str) -> Listed:
        async with await send(self._fs, "HEAD", uri, {}, check=False) as head:
            size = head.headers.get("Content-Length")
            if head.status == 200 and size is not None:
                return Listed(uri, int(size), version_of(head.headers, int(size)))
        async with await send(self._fs, "GET", uri, {"Range": "bytes=0-0"}) as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            size = total if answer.status == 206 else answer.headers.get("Content-Length", "")
            num_bytes = int(size) if size.isdigit() else None
            return Listed(uri, num_bytes, version_of(answer.headers, num_bytes))

    async def _status_of_a_byte(self, uri: str) -> int:
        async with await send(self._fs, "GET", uri, {"Range": "bytes=0-0"}) as answer:
            return answer.status


class Body:
    """One GET of a whole shard, read forward; made anew, and skipped through, where it breaks."""

    def __init__(self, store: HttpStore, shard: ShardInfo) -> None:
        self._store, self._shard = store, shard
        self._answer: ClientResponse | None = None
        self._at: int | None = None  # the next byte that it will give, where that is known

    def fetch(self, shard: ShardInfo, start: int, stop: int, sink: bytearray) -> None:
        """See `Source.fetch`."""
        assert shard is self._shard, "a pass is over one shard"
        sync(self._store.loop, self._fetch, start, stop, sink)

    def close(self) -> None:
        """Let the connection go. To be called in the loop."""
        if self._answer is not None:
            self._answer.close()
        self._answer, self._at = None, None

    async def _fetch(self, start: int, stop: int, sink: bytearray) -> None:
        if self._answer is None or self._at != start:
            self.close()
            self._answer = await self._store.get(self._shard)
            await skip(self._answer, start)
        self._at = None
        await take(self._answer, len(sink) + stop - start, sink)
        self._at = stop


async def send(
    filesystem: Any, method: str, uri: str, headers: Mapping[str, str], *, check: bool = True
) -> ClientResponse:
    """The answer to a request, sent once; with `check`, one that holds bytes of a file."""
    session = await filesystem.set_session()
    answer: ClientResponse = await session.request(
        method, filesystem.encode_url(uri), headers=headers, **filesystem.kwargs
    )
    if check and answer.status not in (200, 206):
        answer.raise_for_status()
        answer.close()
        raise WrongAnswer(f"the server answered with status {answer.status}")
    return answer


def range_of(answer: ClientResponse) -> str | None:
    """Which part came; None where that is everything."""
    if answer.status != 206:
        return None
    said = answer.headers.get("Content-Range")
    if said is None:
        raise WrongAnswer("a part came that does not say which")
    return said


async def take(answer: ClientResponse, wanted: int, sink: bytearray) -> None:
    """Read until `sink` holds `wanted` bytes. Raises EOFError where the body ends before."""
    while len(sink) < wanted:
        piece = await answer.content.read(min(_PIECE_BYTES, wanted - len(sink)))
        if not piece:
            raise EOFError(f"the body ended {wanted - len(sink)} bytes too early")
        sink += piece


async def skip(answer: ClientResponse, num_bytes: int) -> None:
    """Read over so many bytes."""
    skipped = 0
    while skipped < num_bytes:
        piece = await answer.content.read(min(_PIECE_BYTES, num_bytes - skipped))
        if not piece:
            raise EOFError(f"{skipped} bytes came where {num_bytes} had come before")
        skipped += len(piece)
