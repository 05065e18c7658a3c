"""Window on a tar: the part that is in memory, which moves forward."""

from collections.abc import Callable, Iterator

from shards.tars.headers import BLOCK, header_offsets

Read = Callable[[int, int], bytes]

MIN_STEP = 1 << 16
_MAX_STEP = 1 << 23
# A longer gap is skipped: one more request costs about as much as reading this many bytes.
_LONG_GAP = 1 << 20


class ReadWindow:
    """Contiguous part of a file that grows in doubling steps and can drop its beginning."""

    def __init__(self, read: Read, size: int, start: int, stop: int, step: int) -> None:
        self._read, self.size, self._step = read, size, step
        self.start = max(0, start)
        self._hold(self.start, read(self.start, min(stop, size)))
        self._far_start, self._far = 0, b""

    def _hold(self, start: int, data: bytes) -> None:
        self.start, self.stop, self._data = start, start + len(data), data

    def get(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), fewer at the end of the file."""
        assert start >= self.start, "a walk never goes back"
        if stop > self.stop and self.stop < self.size:
            self._step = min(2 * self._step, _MAX_STEP)
            wanted = min(max(stop, self.stop + self._step), self.size)
            self._hold(self.start, self._data + self._read(self.stop, wanted))
        return self._data[start - self.start : max(0, stop - self.start)]

    def peek(self, start: int, stop: int) -> bytes:
        """Return the same as `get`, but read bytes far ahead separately, without keeping them."""
        if start < self.stop + _LONG_GAP:
            return self.get(start, stop)
        stop = min(stop, self.size)
        if not self._far_start <= start <= stop <= self._far_start + len(self._far):
            self._far = self._read(start, min(max(stop, start + MIN_STEP), self.size))
            self._far_start = start
        return self._far[start - self._far_start : max(0, stop - self._far_start)]

    def reach_back(self, start: int) -> None:
        """Make `start` the first byte of the window."""
        start = max(0, start)
        self._hold(start, self._read(start, self.start) + self._data)

    def forget(self, offset: int) -> None:
        """Drop the bytes before `offset`; bytes that were not read yet are skipped."""
        if offset >= self.stop:
            if offset > self.stop + _LONG_GAP:
                self._step = MIN_STEP
            self._hold(min(offset, self.size), b"")
        elif 2 * (offset - self.start) > self.stop - self.start:
            self._hold(offset, self._data[offset - self.start :])

    def headers(self, stop: int) -> Iterator[int]:
        """Yield the offsets of headers in the window before `stop`, in order."""
        for at in header_offsets(self._data, -self.start % BLOCK, stop - self.start):
            yield self.start + at

    def find_header(self, offset: int, stop: int) -> int | None:
        """Return the first header in [offset, stop), or None; drops the bytes before it."""
        stop = min(stop, self.size)
        while offset < stop:
            self.forget(offset)
            piece = self.get(offset, offset + MIN_STEP)
            for at in header_offsets(piece):
                return offset + at if offset + at < stop else None
            offset += MIN_STEP
        return None

    def skip_zeros(self, offset: int) -> int:
        """Return the first block from `offset` on that is not all zeros; drops the bytes before."""
        while offset < self.size:
            self.forget(offset)
            if self.get(offset, offset + 1) != b"\0":
                return offset
            piece = self.get(offset, offset + MIN_STEP)
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            if zeros < min(BLOCK, len(piece)):
                return offset
            offset += max(BLOCK, zeros // BLOCK * BLOCK)
        return self.size
