"""Downloads of many images from the web: bounded in bytes, time, attempts and requests per host.

The addresses are not trusted. Only http and https are followed, also after redirects; a body that
is too long is dropped; a server that sends slowly is left after `total_seconds`. aiohttp is
imported inside functions: packing from local files does not need it.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from shards.errors import ConfigError
from shards.stores.failures.asked_waits import rate_limit_reset, retry_after
from shards.stores.failures.error_kinds import RequestFailure
from shards.stores.retry import RetriesExhausted, RetryConfig, call_with_retries

if TYPE_CHECKING:
    import aiohttp

_PIECE_BYTES: Final = 1 << 16
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 10.0
# A host that only asks for fewer requests for so long is given up: its images are lost.
_MAX_THROTTLED_SECONDS: Final = 150.0
_MAX_REDIRECTS: Final = 10
_TRANSIENT_STATUS: Final = (408, 425, 429, 500, 502, 503, 504)
_HEADERS: Final = {
    "User-Agent": "streamssl",
    "Accept": "image/*, */*;q=0.5",
    # Images are compressed already; a body that is compressed again is not decompressed.
    "Accept-Encoding": "identity",
}


class FetchError(Exception):
    """An image cannot be downloaded. `lost`: a network failure that may pass, as `failure` says."""

    def __init__(
        self, reason: str, *, lost: bool = False, failure: RequestFailure | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.lost = reason, lost
        self.failure = failure or RequestFailure("other" if lost else "refused")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """Limits of image downloads."""

    max_bytes: int = 1 << 26
    """Leave out an image from the web that has more bytes."""
    timeout_seconds: float = 10.0
    """Give up an attempt when a server sends nothing for so long."""
    total_seconds: float = 60.0
    """Give up an attempt that is not done after so long."""
    num_attempts: int = 3
    """Maximum number of requests for one image, after failures that may pass; more for a host that
    asks for fewer requests, until it has sent no image for two minutes."""
    connections: int = 32
    """Maximum number of concurrent requests of a worker."""
    per_host: int = 8
    """Maximum number of concurrent requests to one host, over all workers."""
    max_lost_fraction: float = 0.5
    """Refuse to write a shard that lost more of its images to the network; 1 always writes it."""

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
class _HostLimit:
    semaphore: asyncio.Semaphore
    num_users: int = 0


class ImageDownloader:
    """Downloads images for many threads with one connection pool. Must be closed."""

    def __init__(self, config: DownloadConfig) -> None:
        self._config = config
        self._retry = RetryConfig(
            num_attempts=config.num_attempts,
            first_wait_seconds=_FIRST_WAIT_SECONDS,
            longest_wait_seconds=_LONGEST_WAIT_SECONDS,
        )
        self._hosts: dict[str, _HostLimit] = {}
        # Time of the first answer with which a host asked for fewer requests, since its last image.
        self._throttled_since: dict[str, float] = {}
        self._aborted = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="web", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self._run(self._open())

    def get(self, url: str) -> bytes:
        """Return the body of `url`. Raises FetchError."""
        try:
            return call_with_retries(
                lambda: bytes(self._run(self._request(url))),
                self._retry,
                classify=_failure_of,
                sleep=lambda seconds: self._run(self._pause(seconds)),
            )
        except RetriesExhausted as exhausted:
            raise exhausted.error from exhausted.error.__cause__

    def abort(self) -> None:
        """Cancel all requests; later ones are refused at once."""
        self._run(self._cancel_all())

    def close(self) -> None:
        """Close the connections. No other thread may use the object any more."""
        self.abort()
        self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "ImageDownloader":
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

    async def _open(self) -> "aiohttp.ClientSession":
        import aiohttp

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
        self._check_not_aborted()
        await asyncio.sleep(seconds)

    def _check_not_aborted(self) -> None:
        if self._aborted:
            raise FetchError("aborted")

    async def _request(self, url: str) -> bytearray:
        """Send one request and return its body. Raises FetchError."""
        import aiohttp

        self._check_not_aborted()
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise FetchError("bad_address")
            # The wait for the host's semaphore is not the server's fault, so it is not timed.
            async with (
                self._permit(parts.hostname),
                asyncio.timeout(self._config.total_seconds),
                self._session.get(url, max_redirects=_MAX_REDIRECTS) as response,
            ):
                if response.status != 200:
                    raise self._refused(parts.hostname, response)
                self._throttled_since.pop(parts.hostname, None)
                return await self._read_body(response)
        except (aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise FetchError("bad_address") from error
        except (
            OSError,
            aiohttp.ClientError,
            aiohttp.http_exceptions.HttpProcessingError,
        ) as error:
            raise _fetch_error(error) from error

    def _refused(self, host: str, response: "aiohttp.ClientResponse") -> FetchError:
        reason, lost = f"http_{response.status}", response.status in _TRANSIENT_STATUS
        wait = retry_after(response.headers)
        if response.status != 429 and not (response.status == 503 and wait):
            return FetchError(reason, lost=lost)
        now = self._loop.time()
        if now - self._throttled_since.setdefault(host, now) > _MAX_THROTTLED_SECONDS:
            return FetchError(reason, lost=True, failure=RequestFailure("refused"))
        wait = wait or rate_limit_reset(response.headers)
        return FetchError(reason, lost=True, failure=RequestFailure("throttled", wait))

    @asynccontextmanager
    async def _permit(self, host: str) -> AsyncIterator[None]:
        """Hold one of the concurrent requests that a host may have."""
        if host not in self._hosts:
            self._hosts[host] = _HostLimit(asyncio.Semaphore(self._config.per_host))
        limit = self._hosts[host]
        limit.num_users += 1
        try:
            async with limit.semaphore:
                yield
        finally:
            limit.num_users -= 1
            if not limit.num_users:
                del self._hosts[host]

    async def _read_body(self, response: "aiohttp.ClientResponse") -> bytearray:
        if (response.content_length or 0) > self._config.max_bytes:
            raise FetchError("too_many_bytes")
        data = bytearray()
        async for piece in response.content.iter_chunked(_PIECE_BYTES):
            data += piece
            if len(data) > self._config.max_bytes:
                raise FetchError("too_many_bytes")
        return data


def _failure_of(error: Exception) -> RequestFailure:
    return error.failure if isinstance(error, FetchError) else RequestFailure("refused")


def _fetch_error(error: Exception) -> FetchError:
    """Return the countable reason of a failed request."""
    import aiohttp

    if isinstance(error, TimeoutError):
        return FetchError("timeout", lost=True)
    if isinstance(error, aiohttp.TooManyRedirects):
        return FetchError("too_many_redirects")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError("bad_certificate")
    if isinstance(error, aiohttp.ClientConnectorError):
        # A name that does not exist is gone for good; a resolver that does not answer may recover.
        cause = error.os_error
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return FetchError("no_such_host")
        return FetchError("unreachable", lost=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("broken_answer", lost=True)
    return FetchError("broken_connection", lost=True)
