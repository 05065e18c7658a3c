"""Which chunks were in hand when this process died: for readers that are threads of a trainer.

An image that kills a thread's decoder kills the trainer, too, and so it would at every new start.
So whoever crops a chunk says so first, in a small file: what it still holds at the next start was
in hand at the end of the last one.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shards.records import Chunk

# A line for each thread: shard, first byte, and how many processes died with it in hand before.
_LINE: Final = 64


class CrashMarks:
    """The file of chunks in hand. Use as a context: leaving it in any orderly way removes the file.

    One process at a time, any number of threads. Nothing is synchronised with the disk: the file
    has to outlive this process, not the machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._num_lines = 0

    def __enter__(self) -> "CrashMarks":
        self._made = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._deaths = dict(_read_deaths(self._path.read_bytes()))
        os.ftruncate(self._file, 0)
        return self

    @contextmanager
    def in_hand(self, chunk: Chunk) -> Iterator[int]:
        """Mark a chunk while it is worked on; gives how many processes died with it in hand."""
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
            with contextlib.suppress(OSError):  # by now it may hold a run
                self._path.parent.rmdir()


def _read_deaths(content: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """((shard, start), deaths), this one included. A line that was cut off is none."""
    for line in content.decode("ascii", "replace").splitlines():
        with contextlib.suppress(ValueError):
            shard, start, deaths = map(int, line.split())
            yield (shard, start), deaths + 1
