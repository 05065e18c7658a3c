"""From an address to its store: which library, with which time-outs, at whose pace."""

import logging
import os
import threading
from typing import Any

import fsspec

from shards.errors import ManifestError
from shards.redaction import redact, short
from shards.stores.fsspec_store import OtherStore
from shards.stores.http_store import HttpStore, client_timeout, http_options
from shards.stores.hub_store import HubStore
from shards.stores.local_store import LocalStore
from shards.stores.request_counters import Counters
from shards.stores.request_limit import Gate, Pace
from shards.stores.retry import Asker, RetryConfig
from shards.stores.s3_store import S3Store, s3_options
from shards.stores.store import Store, store_name

_S3 = ("s3", "s3a")
_HTTP = ("http", "https")
_GCS = ("gs", "gcs")
_AZURE = ("az", "abfs", "abfss")
_EXTRAS = dict.fromkeys(_S3, "s3") | dict.fromkeys(_GCS, "gcs")
_EXTRAS |= dict.fromkeys(_AZURE, "azure")
# These log whole addresses and signed headers once anybody turns debugging on.
_TALKATIVE = (
    "aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "httpcore",
    "httpx", "httpx2", "huggingface_hub", "s3fs", "urllib3",
)  # fmt: skip
_MAX_LOCAL_READS = 1024.0


class Stores:
    """The stores that this process talks to; every bucket and host has one client and one pace.

    Threads may share it. A forked process starts anew: connections and locks are its parent's.
    """

    def __init__(self, retry: RetryConfig) -> None:
        self._retry = retry
        self._start_anew()

    @property
    def counters(self) -> Counters:
        """What was counted in this process."""
        self._look_for_a_fork()
        return self._counters

    def open(self, uri: str) -> Store:
        """The store in which `uri` lies. Raises ManifestError where there is no such store."""
        self._look_for_a_fork()
        name = store_name(uri)
        with self._lock:
            if name not in self._stores:
                self._stores[name] = self._make(name)
            return self._stores[name]

    def filesystem(self, uri: str) -> Any:
        """The fsspec filesystem of the store in which `uri` lies: what a writer needs besides."""
        name = store_name(uri)
        return self._open_filesystem(name, name.partition("://")[0])

    def _make(self, name: str) -> Store:
        protocol = name.partition("://")[0]
        filesystem = self._open_filesystem(name, protocol)
        if protocol == "file":
            gate = Gate(Pace(_MAX_LOCAL_READS))
            return LocalStore(filesystem, Asker(self._retry, gate, self._counters, name))
        ask = Asker(self._retry, Gate(), self._counters, name)
        if protocol in _S3:
            return S3Store(filesystem, protocol, ask)
        if protocol == "hf":
            web = self._open_filesystem("https://huggingface.co", "https")
            return HubStore(filesystem, web, name, self._retry, ask)
        kind = HttpStore if protocol in _HTTP else OtherStore
        return kind(filesystem, name, self._retry, ask)

    def _open_filesystem(self, name: str, protocol: str) -> Any:
        options = _options(protocol, self._retry)
        try:
            if protocol in _AZURE and "@" in name:  # the account is in the address
                options |= fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(name)
            key = (protocol, *sorted(options.get("account_name", "")))
            if key not in self._filesystems:
                _quieten()
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

    def _look_for_a_fork(self) -> None:
        if self._pid != os.getpid():
            # Let go, they would close connections through a loop that does not run here.
            self._inherited = (self._stores, self._filesystems)
            self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._counters = Counters()
        self._stores: dict[str, Store] = {}
        self._filesystems: dict[tuple[str, ...], Any] = {}


def _options(protocol: str, retry: RetryConfig) -> dict[str, Any]:
    """How a filesystem is made: with our time-outs, and without a cache of listings, for the next
    run must see what was added since."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in _S3:
        options |= s3_options(retry) | {"skip_instance_cache": True}
    elif protocol in _HTTP:
        options |= http_options(retry) | {"skip_instance_cache": True}
    elif protocol in _GCS:
        options |= {"requests_timeout": client_timeout(retry)}
    elif protocol in _AZURE:
        options |= {
            "connection_timeout": retry.connect_timeout_seconds,
            "read_timeout": retry.read_timeout_seconds,
        }
    return options


def _quieten() -> None:
    """Keep addresses out of logs, unless somebody set the level of that very library."""
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
