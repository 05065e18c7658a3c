"""Tar cutter: turns a byte range of a plain tar into whole samples, without an index.

A sample belongs to the range in which the first header of its first member starts; extension
headers are part of the member. Any set of ranges that covers the file once gives every sample once.

A range in the middle of a file must first find a header. A block that looks like a header is
trusted only if the chain of sizes from there leads from header to header, over the whole range and
over at least eight headers. The first header of the chain is not used, because its long-name header
may be before it. A sample begins where the key changes. If the bytes do not decide (concatenated
archives, damage, a short nested tar), the search goes further back; in the end the file is walked
from byte 0, which is never ambiguous.

A range cannot detect by itself that it is inside a nested tar, whose members would become samples.
The range in which the enclosing member begins can detect this, and sets `needs_walk`. Later ranges
of such a shard must be cut with `Chunk.walked`, from byte 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shards.errors import NotATar
from shards.member_names import WEBDATASET_NAMES, NameRule
from shards.records import Chunk, Reason, Reject, Sample
from shards.tars.headers import BLOCK, ZEROS, TarHeaderError, TarMember, header_offsets, read_member
from shards.tars.nested_tars import NestedTarScan
from shards.tars.read_window import MIN_STEP, Read, ReadWindow
from shards.tars.sample_starts import SampleStarts
from shards.tars.sparse_files import SparseMapError

# A chain of this many headers is trusted; a shorter nested tar ends before.
_TRUSTED_HEADERS = 8
# The search for a header goes back this far before the walk from byte 0 starts. The walk needs less
# memory: a few steps at a time.
_MAX_BACK = 1 << 25
# Longer runs of zeros at the end are not padding.
_MAX_PADDING = 1 << 20
# A sample is held in memory as a whole; no image needs more than this.
MAX_SAMPLE_BYTES = 1 << 29
# A sparse file may be this many times as long as it is stored; more is a bomb.
MAX_EXPANSION = 16


@dataclass(frozen=True, slots=True)
class CutChunk:
    """Samples and rejects of one chunk, in file order.

    `needs_walk`: later chunks could take the content of a member of this chunk for members of the
    shard itself. `num_links`: hard and symbolic links, which are part of no sample, as are the
    `num_hidden` files that the name rule leaves out. `stop`: end of the last member that was seen.
    """

    found: list[Sample | Reject]
    needs_walk: bool = False
    num_links: int = 0
    num_hidden: int = 0
    stop: int = 0


def cut_chunk(
    read: Read,
    size: int,
    chunk: Chunk,
    window_bytes: int = 1 << 18,
    starts: SampleStarts | None = None,
    names: NameRule = WEBDATASET_NAMES,
) -> CutChunk:
    """Return the samples of `chunk` of a tar of `size` bytes; `names` assigns members to them.

    `read(start, stop)` returns exactly these bytes. Damage, or the end of the file within a sample,
    gives a Reject; cutting continues after it. `starts` shortens walks of the same tar. Raises
    NotATar if there is no header at the start of the file and the chunk starts there; later chunks
    of such a file are empty, or hold the samples of a tar that begins further on.
    """
    step = min(window_bytes, max(MIN_STEP, (chunk.stop - chunk.start) // 4))
    begin, walked = None, None
    if not chunk.walked:
        first = chunk.start - step if chunk.start else 0
        window = ReadWindow(read, size, first, chunk.stop + step, step)
        begin = _synchronise(window, chunk, names)
    if begin is None:
        walked = starts or SampleStarts()
        begin = walked.before(chunk.start)
        stop = chunk.stop if chunk.start - begin <= step else begin
        window = ReadWindow(read, size, begin, stop + step, step)
    if window.start == 0 and not _begins_with_tar(window):
        if chunk.start > 0:
            return CutChunk([])  # the first chunk reports the error
        raise NotATar(_describe_no_tar(window.get(0, BLOCK)))
    scan = NestedTarScan(window, chunk)
    members = walk_members(window, begin, chunk.stop, names)
    found = list(_group(window, chunk, members, scan, walked))
    return CutChunk(found, scan.needs_walk, scan.num_links, scan.num_hidden, scan.stop)


def _begins_with_tar(window: ReadWindow) -> bool:
    """Return True if a header is at byte 0 or soon after it: the first block may be damaged."""
    head = window.get(0, MIN_STEP)
    return head[:BLOCK] == ZEROS or next(header_offsets(head), None) is not None


def _describe_no_tar(head: bytes) -> str:
    for magic, name, extension in (
        (b"\x1f\x8b", "a gzip file", ".tar.gz"),
        (b"\x28\xb5\x2f\xfd", "a zstd file", ".tar.zst"),
    ):
        if head.startswith(magic):
            return (
                f"it begins with {name}; a shard must be a tar, and the name of a compressed one "
                f"must say so: rename it to end in {extension}, or repack it with "
                "`streamssl shards pack`"
            )
    return (
        f"it begins with {head[:8]!r}; a shard must be a tar, or a tar compressed as .tar.gz or "
        ".tar.zst: repack it with `streamssl shards pack`"
    )


def _synchronise(window: ReadWindow, chunk: Chunk, names: NameRule) -> int | None:
    """Return an offset up to `chunk.start` at which a sample certainly begins, or None."""
    while window.start > 0:
        seen: set[int] = set()
        for candidate in window.headers(chunk.start):
            begin = None
            if candidate not in seen:
                begin = _sample_start(_chain(window, candidate, names), chunk, seen)
            if begin is not None:
                return begin
        back = chunk.start - window.start
        if back > _MAX_BACK:
            return None
        window.reach_back(window.start - max(BLOCK, back))
    return 0


def _sample_start(chain: Iterator[TarMember], chunk: Chunk, seen: set[int]) -> int | None:
    """Return the first sample start that a chain of headers proves.

    The result is None if the chain breaks, or if no sample starts before the chunk. `seen` collects
    the headers of failed chains: a chain that reaches one of them fails too.
    """
    begin, key, count = None, None, 0
    try:
        for count, member in enumerate(chain, start=1):
            if member.start in seen:
                return None
            seen.add(member.start)
            # The first name may be wrong, so a change of key counts from the third member on.
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


def _chain(window: ReadWindow, offset: int, names: NameRule) -> Iterator[TarMember]:
    """Yield members that follow each other without a gap, to the end of the file.

    Raises TarHeaderError for anything else, zeros included: a nested tar ends with zeros.
    """
    while offset + BLOCK <= window.size:
        if window.peek(offset, offset + BLOCK) == ZEROS:
            padding = window.size - offset
            if padding > _MAX_PADDING or window.peek(offset, window.size).strip(b"\0"):
                raise TarHeaderError(offset, offset + BLOCK)
            return
        member = read_member(window.peek, offset, names)
        yield member
        offset = member.end


def _group(
    window: ReadWindow,
    chunk: Chunk,
    members: Iterator[TarMember | Reject],
    scan: NestedTarScan,
    starts: SampleStarts | None,
) -> Iterator[Sample | Reject]:
    """Group adjacent members with the same key into samples; yield those of the chunk."""
    current: _SampleBuilder | None = None
    for member in members:
        if isinstance(member, Reject):
            if current is not None:
                yield from current.finish()
            current = None
            if chunk.start <= member.offset < chunk.stop:
                yield replace(member, shard=chunk.shard)
            continue
        scan.visit(member)
        if member.regular:
            key, extension = member.key, member.extension
            if current is None or not current.accepts(key, extension):
                if current is not None:
                    yield from current.finish()
                if member.start >= chunk.stop:
                    return
                if starts is not None:
                    starts.add(member.start)
                current = _SampleBuilder(chunk, member.start, key, scan)
            current.add(window, member, extension)
        elif current is None and member.start >= chunk.stop:
            return
    if current is not None:
        yield from current.finish()
    scan.finish()


class _SampleBuilder:
    """Collects the members of one sample. If the sample starts before the chunk, it keeps only the
    names."""

    def __init__(self, chunk: Chunk, start: int, key: str, scan: NestedTarScan) -> None:
        self._shard, self._start, self._key = chunk.shard, start, key
        self._wanted = start >= chunk.start
        self._scan = scan
        self._fields: dict[str, bytes] = {}
        self._names: dict[str, str] = {}
        self._num_bytes = 0
        self._reject: Reject | None = None

    def accepts(self, key: str, extension: str) -> bool:
        return key == self._key and extension not in self._fields

    def add(self, window: ReadWindow, member: TarMember, extension: str) -> None:
        self._fields[extension] = b""
        if not self._wanted:
            return
        self._names[extension] = member.name
        whole = member.num_bytes if member.sparse_map is None else member.sparse_map.num_bytes
        self._num_bytes += max(whole, member.num_bytes)
        if member.data_stop > window.size:
            available = max(0, window.size - member.data_start)
            self._refuse(member, "truncated_tar", f"{available} of {member.num_bytes} bytes")
        elif self._num_bytes > MAX_SAMPLE_BYTES:
            self._refuse(member, "too_large", f"the sample is over {MAX_SAMPLE_BYTES} bytes")
        elif whole > MAX_EXPANSION * (member.end - member.start):
            self._refuse(member, "too_large", f"{whole} bytes, almost all of them holes")
        if self._reject is not None:
            self._scan.skip(member)
            return
        data = window.get(member.data_start, member.data_stop)
        self._scan.scan(member, data)
        try:
            data = data if member.sparse_map is None else member.sparse_map.fill(data)
        except SparseMapError:
            detail = "fewer bytes are stored than its sparse map says"
            self._refuse(member, "broken_tar", detail)
        self._fields[extension] = data

    def _refuse(self, member: TarMember, reason: Reason, detail: str) -> None:
        if self._reject is None:
            detail = f"{member.name}: {detail}"
            place = (self._shard, self._start, self._key)
            self._reject = Reject(*place, reason, detail, member.name)

    def finish(self) -> Iterator[Sample | Reject]:
        if self._reject is not None:
            yield self._reject
        elif self._wanted:
            yield Sample(self._shard, self._start, self._key, self._fields, self._names)


def walk_members(
    window: ReadWindow, begin: int, stop: int, names: NameRule
) -> Iterator[TarMember | Reject]:
    """Yield the members from `begin` on; drop bytes that were passed.

    A range without headers is one Reject at its first block; the search for the next header goes up
    to `stop`. If a member claims to be longer than the file, its data are searched likewise.
    """
    offset: int | None = begin
    while offset is not None and (offset := window.skip_zeros(offset)) < window.size:
        try:
            member = read_member(window.get, offset, names)
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
