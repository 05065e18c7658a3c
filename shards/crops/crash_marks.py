"""Crash marks: the chunks that were being cropped when the process died.

Reader threads run inside the trainer, so an image that crashes a decoder crashes the trainer, at
every restart. Each thread therefore marks its chunk in a small file before cropping. A mark that is
still there at the next start names a chunk that may have caused the crash.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shards.records import Chunk

# One line for each thread: shard, first byte, and the number of earlier crashes with this chunk.
_LINE: Final = 64


class CrashMarks:
    """The file of marks. Use as a context; a normal exit or an exception removes the file.

    One process at a time may use it, with any number of threads. Writes are not flushed to disk:
    the file must survive a crash of the process, not of the machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._num_lines = 0

    def __enter__(self) -> "CrashMarks":
        self._made = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._deaths = dict(_read_deaths(self._path.read_bytes()))
        os.ftruncate(self._file, 0)
        return self

    @contextmanager
    def in_hand(self, chunk: Chunk) -> Iterator[int]:
        """Mark a chunk while it is cropped; yields the number of crashes with this chunk."""
        deaths = self._deaths.get((chunk.shard, chunk.start), 0)
        with self._lock:
            if not self._free:
                self._free.append(self._num_lines)
                self._num_lines += 1
            line = self._free.pop()
        self._write(line, f"{chunk.shard} {chunk.start} {deaths}")
        try:
            yield deaths
        finally:
            self._write(line, "")
            with self._lock:
                self._free.append(line)

    def _write(self, line: int, text: str) -> None:
        os.pwrite(self._file, f"{text:<{_LINE - 1}}\n".encode(), line * _LINE)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # the folder may hold a run by now
                self._path.parent.rmdir()


def _read_deaths(content: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield ((shard, start), deaths), the latest crash included; a torn line is skipped."""
    for line in content.decode("ascii", "replace").splitlines():
        with contextlib.suppress(ValueError):
            shard, start, deaths = map(int, line.split())
            yield (shard, start), deaths + 1
