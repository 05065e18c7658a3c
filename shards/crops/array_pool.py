"""Array pool: memory of crops that nobody uses any more, for the crops that are made next.

The system fills new memory with zeros, which takes time. All crops of a block of chunks are given
up at about the same time, so the memory of one block serves the next.
"""

import math
import os
import threading
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
        # Of the same thread, too: a collection of garbage may give memory back within any call.
        self._lock = threading.RLock()
        self._unused: list[NDArray[np.uint8]] = []  # what lay longest first
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that lie unused."""
        return self._num_bytes

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return a uint8 array of this shape, not filled."""
        size = math.prod(shape)
        if not _MIN_BYTES <= size <= self._max_bytes:
            return np.empty(shape, np.uint8)
        memory = self._take(size)
        # Every view of `root` keeps it alive, because it does not look like a view of an array.
        root = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(root, self._give_back, memory).atexit = False
        return root.reshape(shape)

    def _take(self, size: int) -> NDArray[np.uint8]:
        """Return the smallest unused memory that fits, or new memory."""
        with self._lock:
            fitting = [m for m in self._unused if size <= m.nbytes <= _FIT * size]
            if not fitting:
                return np.empty(size, np.uint8)
            found = min(fitting, key=len)
            self._remove(next(n for n, memory in enumerate(self._unused) if memory is found))
            return found

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            self._unused.append(memory)
            self._num_bytes += memory.nbytes
            while self._num_bytes > self._max_bytes:
                self._remove(0)

    def _remove(self, place: int) -> None:
        self._num_bytes -= self._unused.pop(place).nbytes

    def begin_process(self) -> None:
        """Begin empty in a forked process, where no thread may hold the lock."""
        self.__init__(self._max_bytes)  # type: ignore[misc]


# Of this process: crops are made by some of its threads, and given up by others.
ARRAYS: Final = ArrayPool(256 << 20)
os.register_at_fork(after_in_child=ARRAYS.begin_process)
