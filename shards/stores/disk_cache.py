"""Ranges of shards kept on a local disk, for the next epoch and the next run. Nothing needs it.

A range is a file, named by a digest of (address without secrets, version, start, stop), so a shard
that was replaced has other files. It is written whole or not at all, and one that is not as it was
written is dropped and read anew.

The limit holds at every moment, whoever writes: the sum of the sizes of all files here, drafts
included, never passes `max_bytes`. Writers take turns under a lock, and note in the ledger what
they will have written before they write it; so after a kill the ledger says too much, never too
little, until somebody counts again.
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
from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.request_counters import Counters

_HEAD = struct.Struct(">8sQ16s")
_MAGIC = b"sslrange"
# Room is made for many files at once: whoever makes it has to look at every file.
_KEEP = 0.9
# Rather than wait longer for other writers, a range is not kept.
_LOCK_SECONDS = 2.0
_POLL_SECONDS = 0.002

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Where ranges are kept, and how many bytes all of them may take."""

    folder: str
    max_bytes: int

    def __post_init__(self) -> None:
        if not self.folder:
            raise ConfigError("the cache has no folder; give one on a local disk")
        if self.max_bytes < 1:
            raise ConfigError(
                f"cache max_bytes={self.max_bytes}; it must be at least 1: give what the disk can "
                "spare, such as 100000000000"
            )


class DiskCache:
    """The files of one folder. Threads and processes may share it.

    No trouble with the disk is an error: a range that cannot be kept is read from its store again.
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
            self._go_on_without(error)

    def get(self, shard: ShardInfo, start: int, stop: int, counters: Counters) -> bytes | None:
        """Bytes [start, stop) of `shard`, if they are here."""
        path = self._path(shard, start, stop)
        try:
            content = path.read_bytes()
        except OSError:
            counters.add("cache_misses")
            return None
        data = _unpack(content, stop - start)
        with suppress(OSError):
            if data is not None:
                os.utime(path)  # its last use, by which room is made
            else:
                path.unlink()
        counters.add("cache_hits" if data is not None else "cache_misses")
        if data is None:
            counters.add("cache_damaged")
        return data

    def put(self, shard: ShardInfo, start: int, data: bytes, counters: Counters) -> None:
        """Keep `data`, which begins at byte `start` of `shard`, if there can be room for it."""
        size = _HEAD.size + len(data)
        if self._failed or size > self._max_bytes or not _has_name(shard):
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
                _note(ledger, total + size)
                _write(path, data)
        except OSError as error:
            counters.add("cache_skipped")
            self._go_on_without(error)

    def _path(self, shard: ShardInfo, start: int, stop: int) -> Path:
        digest = blake2b(digest_size=16)
        for part in (redact(shard.uri), shard.version, str(start), str(stop)):
            digest.update(len(part.encode()).to_bytes(8, "big") + part.encode())
        name = digest.hexdigest()
        return self._folder / name[:2] / name[2:]

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The open ledger, while nobody else has it; None if others kept it for too long."""
        ledger = os.open(self._folder / "ledger", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield ledger if _lock(ledger) else None
        finally:
            os.close(ledger)

    def _total(self, ledger: int) -> int:
        """The bytes of all files, by the ledger; counted anew where it says nothing."""
        said = os.pread(ledger, 32, 0)
        if said.isdigit():
            return int(said)
        return sum(size for _, size, _ in self._files())

    def _make_room(self, ledger: int, size: int, counters: Counters | None = None) -> int:
        """Drop files, those first that were not used for longest. Gives the bytes that are left."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        goal = min(self._max_bytes - size, int(_KEEP * self._max_bytes))
        for _, num_bytes, path in files:
            if total <= goal:
                break
            os.unlink(path)
            total -= num_bytes
            if counters is not None:
                counters.add("cache_evicted")
        _note(ledger, total)
        return total

    def _files(self) -> list[tuple[int, int, str]]:
        """(last use, size, path) of every file; drafts of killed writers are removed."""
        found: list[tuple[int, int, str]] = []
        for folder in os.scandir(self._folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(folder.path):
                if file.name.endswith(".draft"):
                    os.unlink(file.path)
                    continue
                with suppress(FileNotFoundError):  # a reader dropped it for being damaged
                    status = file.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, file.path))
        return found

    def _go_on_without(self, error: OSError) -> None:
        """Keep nothing more in this process, and say so once."""
        if not self._failed:
            self._failed = True
            _log.warning(
                "nothing more is kept in the cache %s (%s); the run goes on without: free the "
                "disk, or give another --cache",
                self._folder,
                error.strerror,
            )


def _lock(ledger: int) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _note(ledger: int, total: int) -> None:
    os.ftruncate(ledger, 0)
    os.pwrite(ledger, str(total).encode(), 0)


def _write(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".draft")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        with open(draft, "wb") as file:
            file.write(_HEAD.pack(_MAGIC, len(data), _checksum(data)))
            file.write(data)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _unpack(content: bytes, num_bytes: int) -> bytes | None:
    """What was written, if it still is that."""
    if len(content) != _HEAD.size + num_bytes:
        return None
    magic, length, checksum = _HEAD.unpack_from(content)
    data = content[_HEAD.size :]
    right = magic == _MAGIC and length == num_bytes and checksum == _checksum(data)
    return data if right else None


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _has_name(shard: ShardInfo) -> bool:
    """Whether a file here could be of no other shard.

    Where a signed query is all that tells two addresses apart, and nothing but the length tells
    their versions apart, one would be taken for the other.
    """
    return redact(shard.uri) == shard.uri or not shard.version.startswith("-")
