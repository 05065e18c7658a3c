"""Target of a pack: a folder, or a folder of any store. Each file appears there atomically.

Drafts are hidden, and those of killed packs are removed by the next pack.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

from shards.errors import UserError
from shards.file_systems import lock_file
from shards.files import write_atomic
from shards.redaction import redact
from shards.stores.uploads import StoreFolder

Report = Callable[[str], None]

# Drafts of shards, and those of `write_atomic`.
_DRAFTS: Final = (".*.part-*", ".*.draft")
_SCRATCH: Final = "streamssl-pack-"


class PackTarget(Protocol):
    """Folder of finished files."""

    def hold(self, report: Report) -> AbstractContextManager[Path]:
        """Wait until no other pack of this machine uses the target; yield the scratch folder.

        Drafts are written to the scratch folder; drafts of killed packs are removed from it.
        """

    def list(self) -> dict[str, int]:
        """Return names and sizes of the files, without drafts."""

    def read(self, name: str) -> bytes | None:
        """Return all bytes of a file; None if it does not exist."""

    def put(self, name: str, draft: Path) -> None:
        """Move a finished draft to its name."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file."""

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""


def open_target(out: str) -> PackTarget:
    """Return the target at `out`. Raises ManifestError for an unknown store."""
    if "://" in out and not out.startswith("file://"):
        return BucketTarget(out)
    return FolderTarget(Path(out.removeprefix("file://")).expanduser().absolute())


class FolderTarget:
    """Folder of this machine; drafts are hidden files in it, which are renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def hold(self, report: Report) -> Iterator[Path]:
        """See `PackTarget.hold`. Removes the folder if it was made here and stays empty."""
        while True:
            existed = self._path.exists()
            self._make()
            with _lock(self._path, report) as is_locked:
                # The process that held the lock before may have removed the folder.
                if is_locked is None:
                    continue
                try:
                    if is_locked:
                        self._remove_drafts()
                    yield self._path
                finally:
                    if is_locked:
                        self._remove_drafts()
                    if not existed:
                        with suppress(OSError):
                            self._path.rmdir()
                return

    def _make(self) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{self._path} exists and is not a complete pack of these images: it, or a parent "
                "of it, is a file; shards go into a new or empty folder; name another"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be made ({error.strerror}); shards go into a folder with "
                "write permission; name another"
            ) from error

    def list(self) -> dict[str, int]:
        """See `PackTarget.list`."""
        return {
            entry.name: -1 if entry.is_dir() else entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(self._path)
            if not any(map(Path(entry.name).match, _DRAFTS))
        }

    def read(self, name: str) -> bytes | None:
        """See `PackTarget.read`."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, draft: Path) -> None:
        """See `PackTarget.put`."""
        os.replace(draft, self._path / name)

    def write(self, name: str, data: bytes) -> None:
        """See `PackTarget.write`."""
        write_atomic(self._path / name, data, durable=True)

    def remove(self, name: str) -> None:
        """See `PackTarget.remove`."""
        (self._path / name).unlink(missing_ok=True)

    def _remove_drafts(self) -> None:
        for pattern in _DRAFTS:
            for draft in self._path.glob(pattern):
                draft.unlink(missing_ok=True)


class BucketTarget:
    """Folder of a store; drafts are files in the temporary folder of this machine."""

    def __init__(self, uri: str) -> None:
        self._folder = StoreFolder(uri)
        name = blake2b(redact(uri).encode(), digest_size=8).hexdigest()
        self._prefix = f"{_SCRATCH}{name}-"

    @contextmanager
    def hold(self, report: Report) -> Iterator[Path]:
        """See `PackTarget.hold`. Packs on two machines are not locked: they put equal bytes."""
        for left in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
            with suppress(OSError), _lock(left, None):
                shutil.rmtree(left, ignore_errors=True)
        with ExitStack() as stack:
            scratch = None
            while scratch is None:
                # Until it is locked, another pack may remove it as a leftover.
                with suppress(FileNotFoundError):
                    made = Path(tempfile.mkdtemp(prefix=self._prefix))
                    is_locked = stack.enter_context(_lock(made, report))
                    scratch = None if is_locked is None else made
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            yield scratch

    def list(self) -> dict[str, int]:
        """See `PackTarget.list`."""
        return self._folder.list()

    def read(self, name: str) -> bytes | None:
        """See `PackTarget.read`."""
        return self._folder.read(name)

    def put(self, name: str, draft: Path) -> None:
        """See `PackTarget.put`."""
        self._folder.put(name, draft)

    def write(self, name: str, data: bytes) -> None:
        """See `PackTarget.write`."""
        self._folder.write(name, data)

    def remove(self, name: str) -> None:
        """See `PackTarget.remove`."""
        self._folder.remove(name)


@contextmanager
def _lock(folder: Path, report: Report | None) -> Iterator[bool | None]:
    """Hold a lock on a folder, which the kernel releases when the process is killed.

    Yields False if the file system has no locks, None if the folder was replaced meanwhile.
    Without `report` it does not wait: raises BlockingIOError.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _wait_for_lock(handle, folder, report)
    finally:
        os.close(handle)


def _wait_for_lock(handle: int, folder: Path, report: Report | None) -> bool | None:
    try:
        if not lock_file(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
            return False
    except BlockingIOError:
        if report is None:
            raise
        report(f"another process packs into {folder} at this moment; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        return True if os.path.samestat(os.fstat(handle), os.stat(folder)) else None
    except FileNotFoundError:
        return None
