"""Files that survive a crash: atomic writes, and line logs whose torn last line is dropped."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO


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
    """Flush a file or a folder to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that end with a newline; a missing file has none.

    A process that was killed while it wrote can leave a last line without its end.
    """
    if not path.exists():
        return []
    return path.read_bytes().split(b"\n")[:-1]


class DurableLines:
    """Appends lines to an open file; each is on disk before `append` returns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def append(self, line: bytes) -> None:
        """Write `line` and a newline, and flush both to disk. Raises OSError."""
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
