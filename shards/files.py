"""Files that survive a crash: atomic writes, and line logs whose torn last line is dropped."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from shards.file_systems import flush_descriptor


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Replace the file `path` by `content`: a reader sees the old file or the new one.

    The content is written to a hidden draft beside `path`, which is then renamed. If `durable`,
    content and folder are flushed to disk before the call returns. Raises OSError; the draft is
    removed then, and the old file stays.
    """
    draft = path.with_name(f".{path.name}.draft")
    data = content.encode() if isinstance(content, str) else content
    try:
        draft.write_bytes(data)
        if durable:
            flush_path(draft)
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if durable:
        flush_path(path.parent)


def flush_path(path: Path) -> None:
    """Flush a file or a folder to disk, if its file system can. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def read_whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that end with a newline; a missing file has none.

    A process that was killed while it wrote can leave a last line without its end.
    """
    if not path.exists():
        return []
    return path.read_bytes().split(b"\n")[:-1]


def is_at(descriptor: int, path: Path) -> bool:
    """Return True if `path` is still the open file: it was neither removed nor moved."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def append_line(descriptor: int, line: bytes) -> None:
    """Append `line` and a newline to an open file. Raises OSError; the file ends as before then.

    Nothing is buffered: a disk that is full now must not fail again when the file is closed.
    """
    end = os.lseek(descriptor, 0, os.SEEK_END)
    rest = memoryview(line + b"\n")
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


class DurableLines:
    """Appends lines to an open file; each is on disk before `append` returns."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def append(self, line: bytes) -> None:
        """Write `line` and a newline, and flush both to disk. Raises OSError."""
        append_line(self._file.fileno(), line)
        flush_descriptor(self._file.fileno(), self._path)

    @property
    def is_lost(self) -> bool:
        """Return True if the file was removed or moved since it was opened."""
        return not is_at(self._file.fileno(), self._path)

    def close(self) -> None:
        self._file.close()
