"""Images from the web, many at a time: bounded in bytes, time, attempts and requests a host.

Nobody vouches for these addresses. Only http and https are followed, wherever a server points; a
body is dropped once it is too long, however it is sent; a server that drips is left in time.
"""

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import http_exceptions

from shards.errors import ConfigError

_PIECE: Final = 1 << 16
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 10.0
_MAX_REDIRECTS: Final = 10
# Answers that mean "not now".
_NOT_NOW: Final = (408, 425, 429, 500, 502, 503, 504)
_HEADERS: Final = {
    "User-Agent": "streamssl",
    "Accept": "image/*, */*;q=0.5",
    # An image is compressed already; what comes compressed again is not unpacked.
    "Accept-Encoding": "identity",
}


class FetchError(Exception):
    """An image cannot be had. `lost`: the network is to blame, another time it may be there."""

    def __init__(self, reason: str, *, lost: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.lost = reason, lost


@dataclass(frozen=True, kw_only=True, slots=True)
class WebConfig:
    """How images are fetched that lie elsewhere."""

    max_bytes: int = 1 << 26
    """An image from the web that has more is left out."""
    timeout_seconds: float = 10.0
    """A server that sends nothing for so long is left."""
    total_seconds: float = 60.0
    """And so is one that is not done after so long."""
    num_attempts: int = 3
    """How often an address is asked that may answer another time."""
    connections: int = 32
    """How many requests a worker has under way."""
    per_host: int = 8
    """How many of them to one host, all workers together."""
    max_lost_fraction: float = 0.5
    """A shard is not written when the network loses more of its images; 1 writes it anyway."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "num_attempts", "connections", "per_host"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1: raise it")
        for name in ("timeout_seconds", "total_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be more than 0: a server needs some "
                    "time, 10 is plenty"
                )
        if not 0 <= self.max_lost_fraction <= 1:
            raise ConfigError(
                f"max_lost_fraction={self.max_lost_fraction}; it must be from 0 to 1: 0.5 stops "
                "when more than half is lost"
            )


@dataclass(slots=True)
class _Host:
    free: asyncio.Semaphore
    num_users: int = 0


class Web:
    """Fetches addresses for many threads, with one connection pool. To be closed."""

    def __init__(self, config: WebConfig) -> None:
        self._config = config
        self._hosts: dict[str, _Host] = {}
        self._aborted = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="web", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self._run(self._open())

    def get(self, url: str) -> bytes:
        """The body of `url`. Raises FetchError."""
        wait = _FIRST_WAIT_SECONDS
        for attempt in range(1, self._config.num_attempts + 1):
            try:
                return self._run(self._ask(url))
            except FetchError as error:
                if not error.lost or attempt == self._config.num_attempts:
                    raise
            self._run(self._pause(random.uniform(0, wait)))
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    def abort(self) -> None:
        """Drop what is under way; whoever asks from now on is refused at once."""
        self._run(self._cancel_all())

    def close(self) -> None:
        """To be called when nobody asks any more."""
        self.abort()
        self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Web":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> aiohttp.ClientSession:
        config = self._config
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ttl_dns_cache=300, resolver=aiohttp.ThreadedResolver()
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.timeout_seconds, sock_read=config.timeout_seconds
            ),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=True,
        )

    async def _cancel_all(self) -> None:
        self._aborted = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        self._check()
        await asyncio.sleep(seconds)

    def _check(self) -> None:
        if self._aborted:
            raise FetchError("aborted")

    async def _ask(self, url: str) -> bytes:
        """One attempt."""
        self._check()
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise FetchError("bad_address")
            # Waiting for one's turn is not the server's fault, so it is not timed.
            async with (
                self._turn(parts.hostname),
                asyncio.timeout(self._config.total_seconds),
                self._session.get(url, max_redirects=_MAX_REDIRECTS) as answer,
            ):
                if answer.status != 200:
                    lost = answer.status in _NOT_NOW
                    raise FetchError(f"http_{answer.status}", lost=lost)
                return await self._body(answer)
        except (aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise FetchError("bad_address") from error
        except (OSError, aiohttp.ClientError, http_exceptions.HttpProcessingError) as error:
            raise _failed(error) from error

    @asynccontextmanager
    async def _turn(self, host: str) -> AsyncIterator[None]:
        """One of the requests that the host may have at once."""
        entry = self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._config.per_host)))
        entry.num_users += 1
        try:
            async with entry.free:
                yield
        finally:
            entry.num_users -= 1
            if not entry.num_users:
                del self._hosts[host]

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        if (answer.content_length or 0) > self._config.max_bytes:
            raise FetchError("too_many_bytes")
        data = bytearray()
        async for piece in answer.content.iter_chunked(_PIECE):
            data += piece
            if len(data) > self._config.max_bytes:
                raise FetchError("too_many_bytes")
        return bytes(data)


def _failed(error: Exception) -> FetchError:
    """What a request that came to nothing is counted as."""
    if isinstance(error, TimeoutError):
        return FetchError("timeout", lost=True)
    if isinstance(error, aiohttp.TooManyRedirects):
        return FetchError("too_many_redirects")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError("bad_certificate")
    if isinstance(error, aiohttp.ClientConnectorError):
        # A name that nobody has is gone for good; a resolver that is silent is not.
        cause = error.os_error
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return FetchError("no_such_host")
        return FetchError("unreachable", lost=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("broken_answer", lost=True)
    return FetchError("broken_connection", lost=True)
