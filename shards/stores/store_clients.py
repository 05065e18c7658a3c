"""Store of an address: one client and one request limit for each bucket and host.

Client libraries are imported inside functions, when a store of their kind is used: together they
take longer to import than most commands on local files take to run.
"""

import logging
import os
import threading
from collections import deque
from functools import partial
from typing import Any

from shards.errors import ManifestError
from shards.redaction import redact, short
from shards.stores.local_store import LocalStore
from shards.stores.request_counters import RequestCounters
from shards.stores.request_limit import AdaptiveLimit, RequestLimiter
from shards.stores.retry import RetryConfig, RetryingClient
from shards.stores.store import Store, store_name

_S3 = ("s3", "s3a")
_HTTP = ("http", "https")
_GCS = ("gs", "gcs")
_AZURE = ("az", "abfs", "abfss")
_EXTRAS = dict.fromkeys(_S3, "s3") | dict.fromkeys(_GCS, "gcs")
_EXTRAS |= dict.fromkeys(_AZURE, "azure")
# In debug mode these libraries log whole addresses and signed headers.
_VERBOSE_LOGGERS = (
    "aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "httpcore",
    "httpx", "httpx2", "huggingface_hub", "s3fs", "urllib3",
)  # fmt: skip
_MAX_LOCAL_READS = 1024.0
# Credentials last an hour, and a request minutes.
_NUM_REPLACED = 4
# Words of the environment for options of s3fs that are true or false.
_FLAGS = ("anon", "requester_pays")
_FALSE_WORDS = ("", "0", "false", "no", "off", "none", "null")


class Stores:
    """Stores of this process; each bucket and host has one client and one request limit.

    Threads may share it. After a fork it starts with new clients: connections and locks belong to
    the parent process.
    """

    def __init__(self, retry: RetryConfig) -> None:
        self._retry = retry
        self._reset()

    @property
    def counters(self) -> RequestCounters:
        """Counters of this process."""
        self._reset_after_fork()
        return self._counters

    def open(self, uri: str) -> Store:
        """Return the store that holds `uri`. Raises ManifestError for an unknown store."""
        self._reset_after_fork()
        name = store_name(uri)
        with self._lock:
            if name not in self._stores:
                self._stores[name] = self._make(name)
            return self._stores[name]

    def stop(self) -> None:
        """End all waits for stores: these requests and later ones raise StreamStopped."""
        with self._lock:
            for store in self._stores.values():
                store.client.stop()

    def _make(self, name: str) -> Store:
        protocol = name.partition("://")[0]
        filesystem = self._open_filesystem(name, protocol)
        is_local = protocol == "file"
        limiter = RequestLimiter(AdaptiveLimit(_MAX_LOCAL_READS) if is_local else None)
        client = RetryingClient(
            self._retry, limiter, self._counters, name, partial(self._renew, name)
        )
        if is_local:
            return LocalStore(filesystem, client)
        if protocol in _S3:
            from shards.stores.s3_store import S3Store

            return S3Store(filesystem, protocol, client)
        if protocol == "hf":
            from shards.stores.hub_store import HubStore

            web = self._open_filesystem("https://huggingface.co", "https")
            return HubStore(filesystem, web, name, self._retry, client)
        if protocol in _HTTP:
            from shards.stores.http_store import HttpStore

            return HttpStore(filesystem, name, self._retry, client)
        from shards.stores.fsspec_store import FsspecStore

        return FsspecStore(filesystem, name, self._retry, client)

    def _renew(self, name: str) -> None:
        """Make the client of a store anew: it reads its credentials again."""
        with self._lock:
            store = self._stores[name]
            # Kept alive for the requests that other threads have under way.
            self._replaced.append(store.filesystem)
            store.filesystem = self._open_filesystem(name, name.partition("://")[0], anew=True)

    def _open_filesystem(self, name: str, protocol: str, *, anew: bool = False) -> Any:
        import fsspec

        try:
            options = _options(protocol, self._retry) | (
                {"skip_instance_cache": True} if anew else {}
            )
            if protocol in _AZURE and "@" in name:  # the account is in the address
                options |= fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(name)
            key = (protocol, options.get("account_name", ""))
            if anew or key not in self._filesystems:
                _quieten_loggers()
                self._filesystems[key] = fsspec.filesystem(protocol, **options)
            return self._filesystems[key]
        except ValueError as error:
            raise ManifestError(
                f"{name!r} is in the store {protocol!r}, which is unknown; allowed are a local "
                "path, s3://, gs://, az://, hf://, http:// and https://"
            ) from error
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = f"pip install 'streamssl[{extra}]'" if extra else short(error)
            raise ManifestError(
                f"{redact(name)!r} needs a library that is not installed: {remedy}"
            ) from error

    def _reset_after_fork(self) -> None:
        if self._pid != os.getpid():
            # Kept alive: their finalizers would use an event loop that does not run here.
            self._inherited = (self._stores, self._filesystems)
            self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._counters = RequestCounters()
        self._stores: dict[str, Store] = {}
        self._filesystems: dict[tuple[str, str], Any] = {}
        self._replaced: deque[Any] = deque(maxlen=_NUM_REPLACED)


def _options(protocol: str, retry: RetryConfig) -> dict[str, Any]:
    """Return the options of a filesystem: our timeouts, and no cache of listings.

    A cached listing would hide shards that were added since.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in _S3:
        # botocore's own retries would hide each 503 from the request limit.
        config = {
            "connect_timeout": retry.connect_timeout_seconds,
            "read_timeout": retry.read_timeout_seconds,
            "retries": {"max_attempts": 0},
            "max_pool_connections": 64,
        }
        options |= {"config_kwargs": config, "skip_instance_cache": True} | _flags()
    elif protocol in _HTTP:
        # Some servers declare a .tar.gz as a tar in gzip encoding; it is wanted as it is stored.
        client_options = {
            "timeout": _client_timeout(retry),
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
        options |= {"client_kwargs": client_options, "skip_instance_cache": True}
    elif protocol in _GCS:
        options |= {"requests_timeout": _client_timeout(retry)}
    elif protocol in _AZURE:
        options |= {
            "connection_timeout": retry.connect_timeout_seconds,
            "read_timeout": retry.read_timeout_seconds,
        }
    return options


def _flags() -> dict[str, bool]:
    """Return the options of FSSPEC_S3_ANON and FSSPEC_S3_REQUESTER_PAYS.

    fsspec understands `true` and `false`; each other word, also `False`, would mean yes.
    """
    from fsspec.config import conf

    given = {name: value for protocol in _S3 for name, value in conf.get(protocol, {}).items()}
    return {
        name: str(given[name]).strip().lower() not in _FALSE_WORDS
        for name in _FLAGS
        if name in given
    }


def _client_timeout(retry: RetryConfig) -> Any:
    """Return a timeout for the connection and for each read, without a total."""
    from aiohttp import ClientTimeout

    return ClientTimeout(
        total=None,
        sock_connect=retry.connect_timeout_seconds,
        sock_read=retry.read_timeout_seconds,
    )


def _quieten_loggers() -> None:
    """Keep addresses out of logs, unless the user set the level of that library."""
    for name in _VERBOSE_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
