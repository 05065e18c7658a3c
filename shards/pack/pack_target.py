"""Where shards go: a folder, or any store. Whatever appears there under its name is whole.

Nothing of a draft is ever seen there, and killed packs leave nothing behind for long.
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
from shards.redaction import redact
from shards.stores.uploads import Uploads

Say = Callable[[str], None]

_DRAFTS: Final = ".*.part-*"
_SCRATCH: Final = "streamssl-pack-"


class Target(Protocol):
    """A folder of finished files."""

    def hold(self, say: Say) -> AbstractContextManager[Path]:
        """Wait until no other pack of this machine works there; gives the scratch folder, in which
        drafts grow, free of what killed packs left there."""

    def list(self) -> dict[str, int]:
        """Names of what is there, drafts apart, and how many bytes they have."""

    def read(self, name: str) -> bytes | None:
        """All of a file; None where there is none."""

    def put(self, name: str, draft: Path) -> None:
        """Let a finished draft appear there as a whole."""

    def write(self, name: str, data: bytes) -> None:
        """The same with these bytes."""

    def remove(self, name: str) -> None:
        """Delete a file; nothing happens where there is none."""


def open_target(out: str) -> Target:
    """The place that `out` names. Raises ManifestError where there is no such store."""
    if "://" in out and not out.startswith("file://"):
        return Bucket(out)
    return Folder(Path(out.removeprefix("file://")).expanduser().absolute())


class Folder:
    """A folder of this machine: drafts grow in it, under hidden names, and are renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def hold(self, say: Say) -> Iterator[Path]:
        """See `Target.hold`. No empty folder is left behind."""
        while True:
            existed = self._path.exists()
            self._make()
            with _lock(self._path, say) as is_locked:
                # Who held it before may have removed it when it came to nothing.
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
                f"{self._path} exists and is not a complete pack of these images: it, or what it "
                "lies in, is a file; shards go into a new or empty folder; name another"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be made ({error.strerror}); shards go into a folder that may "
                "be written to; name another"
            ) from error

    def list(self) -> dict[str, int]:
        """See `Target.list`."""
        return {
            entry.name: -1 if entry.is_dir() else entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(self._path)
            if not Path(entry.name).match(_DRAFTS)
        }

    def read(self, name: str) -> bytes | None:
        """See `Target.read`."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, draft: Path) -> None:
        """See `Target.put`."""
        os.replace(draft, self._path / name)

    def write(self, name: str, data: bytes) -> None:
        """See `Target.write`."""
        draft = self._path / f".{name}.part-{os.getpid()}"
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.put(name, draft)

    def remove(self, name: str) -> None:
        """See `Target.remove`."""
        (self._path / name).unlink(missing_ok=True)

    def _remove_drafts(self) -> None:
        for draft in self._path.glob(_DRAFTS):
            draft.unlink(missing_ok=True)


class Bucket:
    """A folder of a store: drafts grow in the temporary folder of this machine."""

    def __init__(self, uri: str) -> None:
        self._uploads = Uploads(uri)
        name = blake2b(redact(uri).encode(), digest_size=8).hexdigest()
        self._prefix = f"{_SCRATCH}{name}-"

    @contextmanager
    def hold(self, say: Say) -> Iterator[Path]:
        """See `Target.hold`. Two machines that pack the same put the same bytes."""
        for left in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
            with suppress(OSError), _lock(left, None):
                shutil.rmtree(left, ignore_errors=True)
        with ExitStack() as stack:
            scratch = None
            while scratch is None:
                # Until it is locked, another pack may take it for one that was left behind.
                with suppress(FileNotFoundError):
                    made = Path(tempfile.mkdtemp(prefix=self._prefix))
                    is_locked = stack.enter_context(_lock(made, say))
                    scratch = None if is_locked is None else made
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            yield scratch

    def list(self) -> dict[str, int]:
        """See `Target.list`."""
        return self._uploads.list()

    def read(self, name: str) -> bytes | None:
        """See `Target.read`."""
        return self._uploads.read(name)

    def put(self, name: str, draft: Path) -> None:
        """See `Target.put`."""
        self._uploads.put(name, draft)

    def write(self, name: str, data: bytes) -> None:
        """See `Target.write`."""
        self._uploads.write(name, data)

    def remove(self, name: str) -> None:
        """See `Target.remove`."""
        self._uploads.remove(name)


@contextmanager
def _lock(folder: Path, say: Say | None) -> Iterator[bool | None]:
    """Hold a lock on a folder, which leaves nothing behind when its holder is killed.

    Gives False where the file system has no locks, None where the folder is another one by now.
    Without `say` nobody waits: BlockingIOError.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _locked(handle, folder, say)
    finally:
        os.close(handle)


def _locked(handle: int, folder: Path, say: Say | None) -> bool | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if say is None:
            raise
        say(f"another process packs into {folder} at this moment; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    try:
        return True if os.path.samestat(os.fstat(handle), os.stat(folder)) else None
    except FileNotFoundError:
        return None
