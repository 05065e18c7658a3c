"""Array pool: memory of crops that nobody uses any more, for the crops that are made next.

The system fills new memory with zeros, which takes time. All crops of a block of chunks are given
up at about the same time, so the memory of one block serves the next.
"""

import math
import os
import threading
import weakref
from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.shared_file import SharedFile

# The system's own allocator keeps the memory of smaller arrays.
_MIN_BYTES: Final = 1 << 20
# An array takes the memory of one that was up to a third larger.
_FIT: Final = 4 / 3


class ArrayPool:
    """Gives arrays of bytes, and takes their memory back when the last view of one is gone.

    At most `max_bytes` lie unused; the memory that lay longest returns to the system. Any thread
    may use it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._file: SharedFile | None = None
        self._lock = threading.Lock()
        self._unused: list[NDArray[np.uint8]] = []  # what lay longest first
        self._num_bytes = 0
        # A collection of garbage may give memory back within any call: it waits here.
        self._returned: deque[NDArray[np.uint8]] = deque()

    @property
    def num_bytes(self) -> int:
        """Bytes that lie unused."""
        return self._num_bytes

    def share(self) -> SharedFile | None:
        """Make arrays in a file that other processes of this machine can read, from now on.

        Returns None where the system allows no such file. Smaller arrays than a megabyte may lie
        elsewhere.
        """
        with self._lock:
            if self._file is None:
                try:
                    self._file = SharedFile()
                except OSError:
                    return None
                self._unused.clear()
                self._num_bytes = 0
            return self._file

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return a uint8 array of this shape, not filled."""
        size = math.prod(shape)
        if not _MIN_BYTES <= size <= self._max_bytes:
            return np.empty(shape, np.uint8)
        with self._lock:
            self._settle()
            memory = self._take(size)
        if memory is None:
            memory = self._new(size)
        # Every view of `root` keeps it alive, because it does not look like a view of an array.
        root = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(root, self._give_back, memory, self._returned).atexit = False
        return root.reshape(shape)

    def _new(self, size: int) -> NDArray[np.uint8]:
        shared = self._file.empty(size) if self._file else None
        return np.empty(size, np.uint8) if shared is None else shared

    def _take(self, size: int) -> NDArray[np.uint8] | None:
        """Return the smallest unused memory that fits."""
        fitting = [(m.nbytes, n) for n, m in enumerate(self._unused) if size <= m.nbytes]
        if not fitting or min(fitting)[0] > _FIT * size:
            return None
        return self._remove(min(fitting)[1])

    def _give_back(self, memory: NDArray[np.uint8], returned: deque[NDArray[np.uint8]]) -> None:
        """Take memory back, unless it was given before this process was forked."""
        if returned is not self._returned:
            return
        returned.append(memory)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._unused.append(memory)
            self._num_bytes += memory.nbytes
        while self._num_bytes > self._max_bytes:
            self._remove(0)

    def _remove(self, place: int) -> NDArray[np.uint8]:
        memory = self._unused.pop(place)
        self._num_bytes -= memory.nbytes
        return memory

    def begin_process(self) -> None:
        """Begin empty in a forked process, where no thread may hold the lock."""
        self.__init__(self._max_bytes)  # type: ignore[misc]


# Of this process: crops are made by some of its threads, and given up by others.
ARRAYS: Final = ArrayPool(256 << 20)
os.register_at_fork(after_in_child=ARRAYS.begin_process)
