"""A byte range of a plain tar becomes whole samples, without an index.

A sample belongs to the range in which the header of its first member starts (its extension
headers count as part of it). Any set of ranges that covers the file once gives every sample once.

To begin in the middle of a file one has to find a header again. A block that looks like one is
believed only if the chain of sizes that starts there leads from header to header, over the whole
range and over eight headers; the first header found is not believed at all, because its long-name
header may lie before it. Then a sample has to begin, and only a change of key says that. Where the
bytes alone cannot tell (archives put end to end, damage, a short tar inside the tar), the search
goes further back, and in the end the file is walked from byte 0, where nothing is ambiguous.

One thing cannot be told: a tar of eight members or more inside the tar, where a range begins in it
and does not reach behind it. Its members become samples of their own. `manifest.open_manifest`
refuses shards that begin with such a thing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from shards.errors import NotATar
from shards.records import Chunk, Reject, Sample
from shards.tar_headers import BLOCK, ZEROS, Damage, Member, is_header, read_member

Read = Callable[[int, int], bytes]

_LEAST_STEP = 1 << 16
_MOST_STEP = 1 << 23
# A chain of headers is believed from this length on; a nested tar that is shorter ends before.
_TRUSTED_HEADERS = 8
# How far before a range a header is looked for before the walk from byte 0, which holds no more
# than a few steps at a time, is taken.
_MOST_BACK = 1 << 26
# More zeros than this at the end are no padding.
_MOST_PADDING = 1 << 20
# A sample is held in memory as a whole, so it must not be larger than any picture could need.
_MAX_SAMPLE_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class Cut:
    """What a chunk holds, in file order.

    `leaps`: a member that begins in the chunk reaches over the whole next one, so that whatever
    was found there may be its inside.
    """

    found: list[Sample | Reject]
    leaps: bool = False


class Window:
    """A contiguous view of a file that grows in doubling steps, and can forget what was passed."""

    def __init__(self, read: Read, size: int, start: int, stop: int, step: int) -> None:
        self._read, self.size, self._step = read, size, step
        self.start = max(0, start)
        self._data = read(self.start, min(stop, size))

    @property
    def stop(self) -> int:
        return self.start + len(self._data)

    def get(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the end of the file."""
        assert start >= self.start, "a walk never goes back"
        stop = min(stop, self.size)
        if stop > self.stop:
            self._step = min(2 * self._step, _MOST_STEP)
            self._data += self._read(self.stop, min(max(stop, self.stop + self._step), self.size))
        return self._data[start - self.start : max(0, stop - self.start)]

    def reach_back(self, start: int) -> None:
        """Make `start` the first byte of the window."""
        start = max(0, start)
        self._data = self._read(start, self.start) + self._data
        self.start = start

    def forget(self, offset: int) -> None:
        """Nothing before `offset` will be asked for again; what was not read yet is skipped."""
        if offset >= self.stop:
            self.start, self._data = min(offset, self.size), b""
        elif 2 * (offset - self.start) > len(self._data):
            self._data = self._data[offset - self.start :]
            self.start = offset

    def candidates(self, stop: int) -> Iterator[int]:
        """Offsets below `stop`, in order, at which a header with the `ustar` mark may start."""
        at = self._data.find(b"ustar")
        while at >= 0 and self.start + at - 257 < stop:
            offset = self.start + at - 257
            if offset >= self.start and offset % BLOCK == 0:
                yield offset
            at = self._data.find(b"ustar", at + 1)


def cut(read: Read, size: int, chunk: Chunk, window_bytes: int = 1 << 18) -> Cut:
    """The samples of `chunk`, in file order, cut out of a tar of `size` bytes.

    `read(start, stop)` returns exactly those bytes. A tar that ends in the middle of a sample, or
    that is damaged, gives a Reject there and goes on behind it. Raises NotATar when no header is
    found at the start of the file; of such a file the later chunks hold nothing.
    """
    step = max(_LEAST_STEP, min(window_bytes, (chunk.stop - chunk.start) // 4))
    begin = None
    if not chunk.walked:
        first = chunk.start - step if chunk.start else 0
        window = Window(read, size, first, chunk.stop + step, step)
        begin = _synchronise(window, chunk)
    if begin is None:
        window, begin = Window(read, size, 0, step, step), 0
    if window.start == 0 and not _begins_with_tar(window):
        if chunk.start > 0:
            return Cut([])  # the first chunk speaks for the shard
        head = window.get(0, BLOCK)
        kind = "a gzip file" if head[:2] == b"\x1f\x8b" else f"{head[:8]!r}"
        raise NotATar(
            f"it begins with {kind}; a shard must be an uncompressed tar: "
            "repack it with `streamssl shards pack`"
        )
    leaps: list[int] = []
    found = list(_group(window, chunk, begin, leaps))
    return Cut(found, bool(leaps))


def _begins_with_tar(window: Window) -> bool:
    """Whether there is a header at byte 0, or soon: its first block may be what is damaged."""
    head = window.get(0, BLOCK)
    return (
        is_header(head)
        or head == ZEROS
        or any(is_header(window.get(at, at + BLOCK)) for at in window.candidates(_LEAST_STEP))
    )


def _synchronise(window: Window, chunk: Chunk) -> int | None:
    """Where a sample begins before `chunk.start`: from there on the walk is certain."""
    while window.start > 0:
        seen: set[int] = set()
        for candidate in window.candidates(chunk.start):
            begin = None
            if candidate not in seen:
                begin = _sample_start(window, candidate, chunk, seen)
            if begin is not None:
                return begin
        back = chunk.start - window.start
        if back > _MOST_BACK:
            return None
        window.reach_back(window.start - max(BLOCK, back))
    return 0


def _sample_start(window: Window, candidate: int, chunk: Chunk, seen: set[int]) -> int | None:
    """The first start of a sample that the chain from `candidate` vouches for.

    None where the chain breaks, or no sample starts before the chunk. `seen` collects the headers
    of such chains: another candidate that leads to one of them cannot do better.
    """
    begin, key, count = None, None, 0
    try:
        for count, member in enumerate(_chain(window, candidate), start=1):
            if member.start in seen:
                return None
            seen.add(member.start)
            # The first name may be wrong, so a change of key is seen from the third member on.
            if begin is None and count > 1 and member.regular:
                if key is not None and member.key != key and member.start < chunk.start:
                    begin = member.start
                key = member.key
            if member.start >= chunk.stop and count >= _TRUSTED_HEADERS:
                break
    except Damage as damage:
        seen.update(range(damage.start, damage.resume, BLOCK))
        return None
    return begin if count >= _TRUSTED_HEADERS else None


def _chain(window: Window, offset: int) -> Iterator[Member]:
    """Members that follow each other without a gap, to the end of the file.

    Raises Damage for anything else, zeros included: where a nested tar ends it looks just so.
    """
    while offset + BLOCK <= window.size:
        if window.get(offset, offset + BLOCK) == ZEROS:
            padding = window.size - offset
            if padding > _MOST_PADDING or window.get(offset, window.size).strip(b"\0"):
                raise Damage(offset, offset + BLOCK)
            return
        member = read_member(window.get, offset)
        yield member
        offset = member.end


def _group(window: Window, chunk: Chunk, begin: int, leaps: list[int]) -> Iterator[Sample | Reject]:
    """Neighbouring members with the same key make a sample; yield those that start in the chunk.

    `leaps` gets the offset of every member of the chunk that reaches over the whole next one.
    """
    next_stop = min(2 * chunk.stop - chunk.start, window.size)
    current: _Forming | None = None
    for member in _walk(window, begin, chunk.stop):
        if isinstance(member, Member) and chunk.start <= member.start < chunk.stop < window.size:
            leaps += [member.start] if member.end >= next_stop else []
        if isinstance(member, Reject):
            if current is not None:
                yield from current.finish()
            current = None
            if chunk.start <= member.offset < chunk.stop:
                yield replace(member, shard=chunk.shard)
        elif member.regular:
            if current is None or not current.takes(member):
                if current is not None:
                    yield from current.finish()
                if member.start >= chunk.stop:
                    return
                current = _Forming(chunk, member)
            current.add(window, member)
        elif current is None and member.start >= chunk.stop:
            return
    if current is not None:
        yield from current.finish()


class _Forming:
    """A sample whose members come one by one. Of one that starts before the chunk only the names
    are kept."""

    def __init__(self, chunk: Chunk, first: Member) -> None:
        self._shard, self._start, self._key = chunk.shard, first.start, first.key
        self._wanted = first.start >= chunk.start
        self._fields: dict[str, bytes] = {}
        self._num_bytes = 0
        self._reject: Reject | None = None

    def takes(self, member: Member) -> bool:
        return member.key == self._key and member.extension not in self._fields

    def add(self, window: Window, member: Member) -> None:
        self._fields[member.extension] = b""
        self._num_bytes += member.num_bytes
        if not self._wanted or self._reject is not None:
            return
        if member.data_stop > window.size:
            there = max(0, window.size - member.data_start)
            detail = f"{member.name}: {there} of {member.num_bytes} bytes"
            self._reject = Reject(self._shard, self._start, self._key, "truncated_tar", detail)
        elif self._num_bytes > _MAX_SAMPLE_BYTES:
            detail = f"{member.name}: the sample is over {_MAX_SAMPLE_BYTES} bytes"
            self._reject = Reject(self._shard, self._start, self._key, "too_large", detail)
        else:
            self._fields[member.extension] = window.get(member.data_start, member.data_stop)

    def finish(self) -> Iterator[Sample | Reject]:
        if self._reject is not None:
            yield self._reject
        elif self._wanted:
            yield Sample(self._shard, self._start, self._key, self._fields)


def _walk(window: Window, offset: int, stop: int) -> Iterator[Member | Reject]:
    """The members from `offset` on, forgetting what was passed.

    A stretch without headers is one Reject at its first block. It is searched for the next header
    as far as `stop`, and so is what a member claims that is longer than the file.
    """
    while True:
        offset = _skip_zeros(window, offset)
        if offset >= window.size:
            return
        try:
            member = read_member(window.get, offset)
        except Damage as damage:
            yield _damaged(window, damage)
            offset = _find_header(window, damage.resume, stop)
        else:
            yield member
            if member.data_stop <= window.size:
                offset = member.end
            else:
                offset = _find_header(window, member.start + BLOCK, stop)


def _damaged(window: Window, damage: Damage) -> Reject:
    if damage.resume > window.size:
        detail = f"the file ends within the header at byte {damage.start}"
        return Reject(-1, damage.start, "", "truncated_tar", detail)
    return Reject(-1, damage.start, "", "broken_tar", f"no header at byte {damage.start}")


def _find_header(window: Window, offset: int, stop: int) -> int:
    """The next block that is a header; the end of the file where there is none before `stop`."""
    while offset < min(stop, window.size):
        window.forget(offset)
        if is_header(window.get(offset, offset + BLOCK)):
            return offset
        offset += BLOCK
    return window.size


def _skip_zeros(window: Window, offset: int) -> int:
    """The next block that is not all zeros; the end of the file where only zeros follow."""
    while offset < window.size:
        window.forget(offset)
        if window.get(offset, offset + BLOCK).strip(b"\0"):
            return offset
        offset += BLOCK
    return window.size
