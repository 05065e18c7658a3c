"""Shared file: memory for crops that another process of the same machine can read where it lies.

It is a file in memory without a name: it ends with the last process that has it open, so a process
that is killed leaves nothing behind.
"""

import bisect
import mmap
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Pages take memory once they are written; an address takes none.
_ADDRESSES: Final = 1 << 36


@dataclass(frozen=True, slots=True)
class FileName:
    """Name by which another process opens a file of this one."""

    pid: int
    descriptor: int
    inode: int

    def open(self) -> NDArray[np.uint8]:
        """Return the bytes of the file, which nobody may write to. Raises OSError."""
        descriptor = os.open(f"/proc/{self.pid}/fd/{self.descriptor}", os.O_RDONLY)
        try:
            if (found := os.fstat(descriptor).st_ino) != self.inode:
                raise FileNotFoundError(f"file {found} of process {self.pid}, not {self.inode}")
            memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return np.frombuffer(memory, np.uint8)


class SharedFile:
    """Gives memory of the file, and takes it back when the last view of it is gone.

    Any thread may use it. A fork of the process may read what it has, and gets nothing new. Raises
    OSError if the system allows no such file.
    """

    def __init__(self, num_addresses: int = _ADDRESSES) -> None:
        self._process = os.getpid()
        descriptor = os.memfd_create("crops")
        try:
            os.ftruncate(descriptor, num_addresses)
            self._memory = mmap.mmap(descriptor, num_addresses)
        except BaseException:
            os.close(descriptor)
            raise
        self.name = FileName(self._process, descriptor, os.fstat(descriptor).st_ino)
        self._start = np.frombuffer(self._memory, np.uint8, 1).ctypes.data
        self._stop = self._start + num_addresses
        self._lock = threading.Lock()
        self._free = [(0, num_addresses)]  # places and sizes, in order; no two touch
        # A collection of garbage may end an array within any call: its memory waits here.
        self._ended: deque[tuple[int, int]] = deque()

    def empty(self, size: int) -> NDArray[np.uint8] | None:
        """Return `size` bytes, not filled; None if there is no room."""
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            while self._ended:
                self._insert(*self._ended.popleft())
            number = next((n for n, (_, room) in enumerate(self._free) if room >= size), None)
            if number is None:
                return None
            place, room = self._free.pop(number)
            if room > size:
                self._free.insert(number, (place + size, room - size))
        array = np.frombuffer(self._memory, np.uint8, size, place)
        weakref.finalize(array, self._end, place, size).atexit = False
        return array

    def place_of(self, array: NDArray[np.uint8]) -> int | None:
        """Return where in the file an array begins; None if it lies elsewhere."""
        address = array.ctypes.data
        return address - self._start if self._start <= address < self._stop else None

    def _end(self, place: int, size: int) -> None:
        """Return memory to the system, and then its addresses to this file."""
        if os.getpid() == self._process:
            self._memory.madvise(mmap.MADV_REMOVE, place, size)
            self._ended.append((place, size))

    def _insert(self, place: int, size: int) -> None:
        number = bisect.bisect(self._free, (place, size))
        if number < len(self._free) and self._free[number][0] == place + size:
            size += self._free.pop(number)[1]
        if number and sum(self._free[number - 1]) == place:
            before, room = self._free.pop(number - 1)
            number, place, size = number - 1, before, room + size
        self._free.insert(number, (place, size))
