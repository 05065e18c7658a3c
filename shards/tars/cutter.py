"""A byte range of a plain tar becomes whole samples, without an index.

A sample belongs to the range in which the header of its first member starts (its extension
headers count as part of it). Any set of ranges that covers the file once gives every sample once.

To begin in the middle of a file one has to find a header again. A block that looks like one is
believed only if the chain of sizes that starts there leads from header to header, over the whole
range and over eight headers; the first header found is not believed at all, because its long-name
header may lie before it. Then a sample has to begin, and only a change of key says that. Where the
bytes alone cannot tell (archives put end to end, damage, a short tar inside the tar), the search
goes further back, and in the end the file is walked from byte 0, where nothing is ambiguous.

One thing cannot be told from a range alone: that all of it lies inside a tar inside the tar. Its
members would become samples of their own. But the range in which the member that holds them begins
can tell, and says so: it `needs_walk`. Ranges of such a shard have to be `walked`, from byte 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shards.errors import NotATar
from shards.records import Chunk, Reason, Reject, Sample
from shards.tars.headers import BLOCK, ZEROS, TarHeaderError, TarMember, header_offsets, read_member
from shards.tars.nested_tars import NestedTarScan
from shards.tars.read_window import MIN_STEP, Read, ReadWindow
from shards.tars.sparse_files import SparseMapError
from shards.tars.sample_starts import SampleStarts

# A chain of headers is believed from this length on; a nested tar that is shorter ends before.
_TRUSTED_HEADERS = 8
# How far before a range a header is looked for before the walk from byte 0, which holds no more
# than a few steps at a time, is taken.
_MAX_BACK = 1 << 25
# More zeros than this at the end are no padding.
_MAX_PADDING = 1 << 20
# A sample is held in memory as a whole, so it must not be larger than any image could need.
_MAX_SAMPLE_BYTES = 1 << 29
# A file with holes may be so many times as long as it is stored, or a chunk of them is a bomb.
_MAX_EXPANSION = 16


@dataclass(frozen=True, slots=True)
class CutChunk:
    """What a chunk holds, in file order.

    `needs_walk`: the inside of a member of this chunk could be taken, from a later chunk, for members of
    the shard itself. `num_links`: names without bytes of their own, which are no part of a sample.
    """

    found: list[Sample | Reject]
    needs_walk: bool = False
    num_links: int = 0


def cut_chunk(
    read: Read, size: int, chunk: Chunk, window_bytes: int = 1 << 18, starts: SampleStarts | None = None
) -> CutChunk:
    """The samples of `chunk`, in file order, cut out of a tar of `size` bytes.

    `read(start, stop)` returns exactly those bytes. A tar that ends in the middle of a sample, or
    that is damaged, gives a Reject there and goes on behind it. `starts` remembers earlier walks of
    the same tar. Raises NotATar when no header is found at the start of the file; of such a file
    the later chunks hold nothing, or what of a tar begins further on.
    """
    step = min(window_bytes, max(MIN_STEP, (chunk.stop - chunk.start) // 4))
    begin, walked = None, None
    if not chunk.walked:
        first = chunk.start - step if chunk.start else 0
        window = ReadWindow(read, size, first, chunk.stop + step, step)
        begin = _synchronise(window, chunk)
    if begin is None:
        walked = starts or SampleStarts()
        begin = walked.before(chunk.start)
        stop = chunk.stop if chunk.start - begin <= step else begin
        window = ReadWindow(read, size, begin, stop + step, step)
    if window.start == 0 and not _begins_with_tar(window):
        if chunk.start > 0:
            return CutChunk([])  # the first chunk speaks for the shard
        raise NotATar(_what_it_is(window.get(0, BLOCK)))
    insides = NestedTarScan(window, chunk)
    found = list(_group(window, chunk, begin, insides, walked))
    return CutChunk(found, insides.leap, insides.num_links)


def _begins_with_tar(window: ReadWindow) -> bool:
    """Whether there is a header at byte 0, or soon: its first block may be what is damaged."""
    head = window.get(0, MIN_STEP)
    return head[:BLOCK] == ZEROS or next(header_offsets(head), None) is not None


def _what_it_is(head: bytes) -> str:
    """A message for the user whose shard is no tar."""
    for magic, name, extension in (
        (b"\x1f\x8b", "a gzip file", ".tar.gz"),
        (b"\x28\xb5\x2f\xfd", "a zstd file", ".tar.zst"),
    ):
        if head.startswith(magic):
            return (
                f"it begins with {name}; a shard must be a tar, and a compressed one be named so: "
                f"rename it to end in {extension}, or repack it with `streamssl shards pack`"
            )
    return (
        f"it begins with {head[:8]!r}; a shard must be a tar, or one that is compressed as .tar.gz "
        "or .tar.zst: repack it with `streamssl shards pack`"
    )


def _synchronise(window: ReadWindow, chunk: Chunk) -> int | None:
    """Where a sample begins before `chunk.start`: from there on the walk is certain."""
    while window.start > 0:
        seen: set[int] = set()
        for candidate in window.headers(chunk.start):
            begin = None
            if candidate not in seen:
                begin = _sample_start(window, candidate, chunk, seen)
            if begin is not None:
                return begin
        back = chunk.start - window.start
        if back > _MAX_BACK:
            return None
        window.reach_back(window.start - max(BLOCK, back))
    return 0


def _sample_start(window: ReadWindow, candidate: int, chunk: Chunk, seen: set[int]) -> int | None:
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
    except TarHeaderError as damage:
        seen.update(range(damage.start, damage.resume, BLOCK))
        return None
    return begin if count >= _TRUSTED_HEADERS else None


def _chain(window: ReadWindow, offset: int) -> Iterator[TarMember]:
    """Members that follow each other without a gap, to the end of the file.

    Raises TarHeaderError for anything else, zeros included: where a nested tar ends it looks just so.
    """
    while offset + BLOCK <= window.size:
        if window.peek(offset, offset + BLOCK) == ZEROS:
            padding = window.size - offset
            if padding > _MAX_PADDING or window.peek(offset, window.size).strip(b"\0"):
                raise TarHeaderError(offset, offset + BLOCK)
            return
        member = read_member(window.peek, offset)
        yield member
        offset = member.end


def _group(
    window: ReadWindow, chunk: Chunk, begin: int, insides: NestedTarScan, starts: SampleStarts | None
) -> Iterator[Sample | Reject]:
    """Neighbouring members with the same key make a sample; yield those that start in the chunk."""
    current: _Forming | None = None
    for member in _walk(window, begin, chunk.stop):
        if isinstance(member, Reject):
            if current is not None:
                yield from current.finish()
            current = None
            if chunk.start <= member.offset < chunk.stop:
                yield replace(member, shard=chunk.shard)
            continue
        insides.passed(member)
        if member.regular:
            key, extension = member.key, member.extension
            if current is None or not current.takes(key, extension):
                if current is not None:
                    yield from current.finish()
                if member.start >= chunk.stop:
                    return
                if starts is not None:
                    starts.add(member.start)
                current = _Forming(chunk, member.start, key, insides)
            current.add(window, member, extension)
        elif current is None and member.start >= chunk.stop:
            return
    if current is not None:
        yield from current.finish()
    insides.ended()


class _Forming:
    """A sample whose members come one by one. Of one that starts before the chunk only the names
    are kept."""

    def __init__(self, chunk: Chunk, start: int, key: str, insides: NestedTarScan) -> None:
        self._shard, self._start, self._key = chunk.shard, start, key
        self._wanted = start >= chunk.start
        self._insides = insides
        self._fields: dict[str, bytes] = {}
        self._num_bytes = 0
        self._reject: Reject | None = None

    def takes(self, key: str, extension: str) -> bool:
        return key == self._key and extension not in self._fields

    def add(self, window: ReadWindow, member: TarMember, extension: str) -> None:
        self._fields[extension] = b""
        if not self._wanted:
            return
        whole = member.num_bytes if member.sparse_map is None else member.sparse_map.num_bytes
        self._num_bytes += max(whole, member.num_bytes)
        if member.data_stop > window.size:
            there = max(0, window.size - member.data_start)
            self._refuse("truncated_tar", f"{member.name}: {there} of {member.num_bytes} bytes")
        elif self._num_bytes > _MAX_SAMPLE_BYTES:
            detail = f"{member.name}: the sample is over {_MAX_SAMPLE_BYTES} bytes"
            self._refuse("too_large", detail)
        elif whole > _MAX_EXPANSION * (member.end - member.start):
            self._refuse("too_large", f"{member.name}: {whole} bytes, nearly all of them holes")
        if self._reject is not None:
            self._insides.unread(member)
            return
        data = window.get(member.data_start, member.data_stop)
        self._insides.read(member, data)
        try:
            data = data if member.sparse_map is None else member.sparse_map.fill(data)
        except SparseMapError:
            self._refuse("broken_tar", f"{member.name}: less is stored than its map of holes says")
        self._fields[extension] = data

    def _refuse(self, reason: Reason, detail: str) -> None:
        if self._reject is None:
            self._reject = Reject(self._shard, self._start, self._key, reason, detail)

    def finish(self) -> Iterator[Sample | Reject]:
        if self._reject is not None:
            yield self._reject
        elif self._wanted:
            yield Sample(self._shard, self._start, self._key, self._fields)


def _walk(window: ReadWindow, begin: int, stop: int) -> Iterator[TarMember | Reject]:
    """The members from `begin` on, forgetting what was passed.

    A stretch without headers is one Reject at its first block. It is searched for the next header
    as far as `stop`, and so is what a member claims that is longer than the file.
    """
    offset: int | None = begin
    while offset is not None and (offset := window.skip_zeros(offset)) < window.size:
        try:
            member = read_member(window.get, offset)
        except TarHeaderError as damage:
            yield _damaged(window, damage)
            offset = window.find_header(damage.resume, stop)
        else:
            yield member
            if member.data_stop <= window.size:
                offset = member.end
            else:
                offset = window.find_header(member.data_start, stop)


def _damaged(window: ReadWindow, damage: TarHeaderError) -> Reject:
    if damage.resume > window.size:
        detail = f"the file ends within the header at byte {damage.start}"
        return Reject(-1, damage.start, "", "truncated_tar", detail)
    return Reject(-1, damage.start, "", "broken_tar", f"{damage.found} at byte {damage.start}")
