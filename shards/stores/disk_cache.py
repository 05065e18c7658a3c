"""Disk cache: ranges of shards on a local disk, for the next epoch and the next run.

Each range is a file, named by a digest of (address without secrets, version, start, stop), so a
shard that was replaced has other files. A file is written atomically, and one with a wrong checksum
is dropped and read again from its store.

The limit holds at each moment, for all processes together: the sizes of all files in the folder,
drafts included, never sum to more than `max_bytes`. Writers hold a lock, and add the size of a file
to the ledger before they write it; so after a kill the ledger holds too much, never too little,
until the files are counted again.
"""

import fcntl
import logging
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from shards.errors import ConfigError
from shards.file_systems import explain_storage, lock_file
from shards.files import write_atomic
from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.request_counters import RequestCounters

_HEAD = struct.Struct(">8sQ16s")
_MAGIC = b"sslrange"
# Fraction of the limit that eviction leaves: it lists all files, so it must not run for each one.
_KEPT_FRACTION = 0.9
# A writer that would wait longer for the lock does not cache its range.
_LOCK_SECONDS = 2.0
_POLL_SECONDS = 0.002
_WITHOUT_LOCKS = (
    "without them the limit of the cache cannot hold, and nothing more is cached: give "
    "a --cache on a local disk"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Folder of the cache, and the maximum size of all its files."""

    folder: str
    max_bytes: int

    def __post_init__(self) -> None:
        if not self.folder:
            raise ConfigError(
                "the cache has no folder; it needs one on a local disk: give --cache FOLDER"
            )
        if self.max_bytes < 1:
            raise ConfigError(
                f"cache max_bytes={self.max_bytes}; it must be at least 1: give what the disk can "
                "spare, such as 100000000000"
            )


class DiskCache:
    """Cache files in one folder. Threads and processes may share it.

    A failure of the disk is not an error: a range that is not cached is read from its store again.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._folder = Path(config.folder).expanduser()
        self._max_bytes = config.max_bytes
        self._failed = False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked() as ledger:
                if ledger is not None and self._total(ledger) > self._max_bytes:
                    self._make_room(ledger, 0)  # the limit was higher before
        except OSError as error:
            self._disable(error)

    def get(
        self, shard: ShardInfo, start: int, stop: int, counters: RequestCounters
    ) -> bytes | None:
        """Return bytes [start, stop) of `shard`, if they are cached."""
        path = self._path(shard, start, stop)
        try:
            content = path.read_bytes()
        except OSError:
            counters.add("cache_misses")
            return None
        data = _unpack(content, stop - start)
        with suppress(OSError):
            if data is not None:
                os.utime(path)  # eviction removes the least recently used files
            else:
                path.unlink()
        counters.add("cache_hits" if data is not None else "cache_misses")
        if data is None:
            counters.add("cache_damaged")
        return data

    def put(self, shard: ShardInfo, start: int, data: bytes, counters: RequestCounters) -> None:
        """Cache `data`, which begins at byte `start` of `shard`, if the limit allows it."""
        size = _HEAD.size + len(data)
        if self._failed or size > self._max_bytes or not _has_unique_name(shard):
            counters.add("cache_skipped")
            return
        try:
            with self._locked() as ledger:
                if ledger is None:
                    counters.add("cache_skipped")
                    return
                path = self._path(shard, start, start + len(data))
                if path.exists():
                    return
                total = self._total(ledger)
                if total + size > self._max_bytes:
                    total = self._make_room(ledger, size, counters)
                _write_total(ledger, total + size)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_atomic(path, _HEAD.pack(_MAGIC, len(data), _checksum(data)) + data)
        except OSError as error:
            counters.add("cache_skipped")
            self._disable(error)

    def _path(self, shard: ShardInfo, start: int, stop: int) -> Path:
        digest = blake2b(digest_size=16)
        for part in (redact(shard.uri), shard.version, str(start), str(stop)):
            digest.update(len(part.encode()).to_bytes(8, "big") + part.encode())
        name = digest.hexdigest()
        return self._folder / name[:2] / name[2:]

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """Yield the open ledger under the lock; None if others hold it for long, or it has none."""
        ledger = os.open(self._folder / "ledger", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield ledger if _lock(ledger, self._folder) else None
        finally:
            os.close(ledger)

    def _total(self, ledger: int) -> int:
        """Return the bytes of all files by the ledger; count them if the ledger is empty."""
        text = os.pread(ledger, 32, 0)
        if text.isdigit():
            return int(text)
        return sum(size for _, size, _ in self._files())

    def _make_room(self, ledger: int, size: int, counters: RequestCounters | None = None) -> int:
        """Remove the least recently used files. Return the number of bytes that are left."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        goal = min(self._max_bytes - size, int(_KEPT_FRACTION * self._max_bytes))
        for _, num_bytes, path in files:
            if total <= goal:
                break
            os.unlink(path)
            total -= num_bytes
            if counters is not None:
                counters.add("cache_evicted")
        _write_total(ledger, total)
        return total

    def _files(self) -> list[tuple[int, int, str]]:
        """Return (last use, size, path) of each file; remove drafts of killed writers."""
        found: list[tuple[int, int, str]] = []
        for folder in os.scandir(self._folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(folder.path):
                if file.name.endswith(".draft"):
                    os.unlink(file.path)
                    continue
                with suppress(FileNotFoundError):  # a reader removed it as damaged
                    status = file.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, file.path))
        return found

    def _disable(self, error: OSError) -> None:
        """Stop writing in this process, and warn once."""
        if not self._failed:
            self._failed = True
            _log.warning(
                "the cache %s cannot be written to: %s, or give another --cache; the run goes on "
                "without it",
                self._folder,
                explain_storage(error, self._folder),
            )


def _lock(ledger: int, folder: Path) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            if not lock_file(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB, folder, _WITHOUT_LOCKS):
                return False
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _write_total(ledger: int, total: int) -> None:
    os.ftruncate(ledger, 0)
    os.pwrite(ledger, str(total).encode(), 0)


def _unpack(content: bytes, num_bytes: int) -> bytes | None:
    """Return the data of a cache file; None if the file is damaged."""
    if len(content) != _HEAD.size + num_bytes:
        return None
    magic, length, checksum = _HEAD.unpack_from(content)
    data = content[_HEAD.size :]
    is_intact = magic == _MAGIC and length == num_bytes and checksum == _checksum(data)
    return data if is_intact else None


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _has_unique_name(shard: ShardInfo) -> bool:
    """Return True if no other shard could have the same cache files.

    Two addresses that differ only in a signed query, with versions that are only a length, would
    share them.
    """
    return redact(shard.uri) == shard.uri or not shard.version.startswith("-")
