"""A byte range of a plain tar becomes whole samples, without an index.

A sample belongs to the range in which the header of its first member starts (its extension
headers count as part of it). Any set of ranges that covers the file once gives every sample once.

To begin in the middle of a file one has to find a header again. A block that looks like one is
believed only if the chain of sizes that starts there leads from header to header; the first header
found is not believed at all, because its long-name header may lie before it. Where the bytes alone
cannot tell (a tar inside the tar, archives put end to end), the search goes further back, in the
end to byte 0, where nothing is ambiguous.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from shards.errors import NotATar
from shards.records import Chunk, Reject, Sample

BLOCK = 512
_ZEROS = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_EXTENSION = (b"L", b"K", b"x", b"g")
_PAX_RECORD = re.compile(rb"(\d+) ([^=\n]+)=")
# Long names and PAX records are short; a larger "extension header" is damage or an attack.
_MAX_EXTENSION_BYTES = 1 << 20
_LEAST_STEP = 1 << 16
# A chain of headers is believed from this length on; a nested tar that is shorter ends before.
_TRUSTED_HEADERS = 8

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """One logical member: `start` is where its first (extension) header lies."""

    start: int
    name: str
    data_start: int
    num_bytes: int
    regular: bool

    @property
    def end(self) -> int:
        return self.data_start + -(-self.num_bytes // BLOCK) * BLOCK


class Damage(Exception):
    """There is no header where one must be. `offset` says where; never leaves this file."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class Window:
    """A growing contiguous view of a file: reads ahead and back in doubling steps."""

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
            self._step *= 2
            self._data += self._read(self.stop, min(max(stop, self.stop + self._step), self.size))
        return self._data[start - self.start : stop - self.start]

    def reach_back(self, start: int) -> None:
        """Make `start` the first byte of the window."""
        start = max(0, start)
        self._data = self._read(start, self.start) + self._data
        self.start = start

    def candidates(self, stop: int) -> Iterator[int]:
        """Offsets below `stop`, in order, at which a header with the `ustar` mark may start."""
        at = self._data.find(b"ustar")
        while at >= 0 and self.start + at - 257 < stop:
            offset = self.start + at - 257
            if offset >= self.start and offset % BLOCK == 0:
                yield offset
            at = self._data.find(b"ustar", at + 1)


def cut(read: Read, size: int, chunk: Chunk, window_bytes: int = 1 << 18) -> list[Sample | Reject]:
    """The samples of `chunk`, in file order, cut out of a tar of `size` bytes.

    `read(start, stop)` returns exactly those bytes. A tar that ends in the middle of a sample, or
    that is damaged, gives a Reject there and goes on behind it. Raises NotATar when the file does
    not begin with a tar header.
    """
    step = max(_LEAST_STEP, min(window_bytes, (chunk.stop - chunk.start) // 4))
    first = chunk.start - step if chunk.start else 0
    window = Window(read, size, first, chunk.stop + step, step)
    if chunk.start == 0:
        _check_is_tar(window)
        begin = 0
    else:
        begin = _synchronise(window, chunk)
    return list(_group(window, chunk, begin))


def _check_is_tar(window: Window) -> None:
    head = window.get(0, BLOCK)
    if not (_is_header(head) or head == _ZEROS):
        kind = "a gzip file" if head[:2] == b"\x1f\x8b" else f"{head[:8]!r}"
        raise NotATar(
            f"it begins with {kind}; a shard must be an uncompressed tar: "
            "repack it with `streamssl shards pack`"
        )


def _synchronise(window: Window, chunk: Chunk) -> int:
    """A trusted member start before `chunk.start`: from there the walk is certain."""
    while window.start > 0:
        for candidate in window.candidates(chunk.start):
            trusted = _second_start(window, candidate, chunk)
            if trusted is not None:
                return trusted
        window.reach_back(window.start - max(BLOCK, chunk.start - window.start))
    return 0


def _second_start(window: Window, candidate: int, chunk: Chunk) -> int | None:
    """The second member start of a chain, if the chain holds over the chunk and eight headers."""
    second = None
    previous_end = candidate
    try:
        for count, member in enumerate(_walk(window, candidate)):
            if member.start != previous_end:
                return None  # an end-of-archive mark inside: a nested tar looks just like this
            previous_end = member.end
            if count == 1:
                second = member.start
            if member.start >= chunk.stop and count >= _TRUSTED_HEADERS:
                break
    except Damage:
        return None
    return second if second is not None and second < chunk.start else None


def _group(window: Window, chunk: Chunk, begin: int) -> Iterator[Sample | Reject]:
    """Neighbouring members with the same key make a sample; yield those that start in the chunk."""
    current: Sample | Reject | None = None
    for member in _walk_over_damage(window, begin):
        if isinstance(member, Reject):
            if current is not None and current.offset >= chunk.start:
                yield current
            current = None
            if chunk.start <= member.offset < chunk.stop:
                yield replace(member, shard=chunk.shard)
        elif member.regular:
            key, _, extension = _split(member.name)
            is_next = current is None or key != current.key
            if isinstance(current, Sample) and extension in current.fields:
                is_next = True
            if is_next:
                if current is not None and current.offset >= chunk.start:
                    yield current
                if member.start >= chunk.stop:
                    return
                current = Sample(chunk.shard, member.start, key, {})
            current = _add(window, current, extension, member)
        elif current is None and member.start >= chunk.stop:
            return
    if current is not None and current.offset >= chunk.start:
        yield current


def _add(
    window: Window, current: Sample | Reject | None, extension: str, member: Member
) -> Sample | Reject | None:
    if not isinstance(current, Sample):
        return current
    data = window.get(member.data_start, member.data_start + member.num_bytes)
    if len(data) < member.num_bytes:
        missing = f"{member.name}: {len(data)} of {member.num_bytes} bytes"
        return Reject(current.shard, current.offset, current.key, "truncated_tar", missing)
    return replace(current, fields={**current.fields, extension: data})


def _split(name: str) -> tuple[str, str, str]:
    """'a/b.seg.PNG' -> ('a/b', '.', 'seg.png'): the key ends at the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return folder + slash + stem, dot, extension.lower()


def _walk_over_damage(window: Window, offset: int) -> Iterator[Member | Reject]:
    """Walk on behind damaged headers; each stretch of damage is one Reject at its first block."""
    while True:
        try:
            yield from _walk(window, offset)
            return
        except Damage as damage:
            yield Reject(-1, damage.offset, "", "broken_tar", f"no header at byte {damage.offset}")
            offset = damage.offset + BLOCK
            while offset < window.size and not _is_header(window.get(offset, offset + BLOCK)):
                offset += BLOCK


def _walk(window: Window, offset: int) -> Iterator[Member]:
    """The members from `offset` on. Raises Damage where there is neither a header nor the end."""
    while (offset := _skip_zeros(window, offset)) + BLOCK <= window.size:
        member = _read_member(window, offset)
        yield member
        offset = member.end
    if window.get(offset, window.size).strip(b"\0"):
        raise Damage(offset)  # the file ends within a header


def _skip_zeros(window: Window, offset: int) -> int:
    while window.get(offset, offset + BLOCK) == _ZEROS:
        offset += BLOCK
    return offset


def _read_member(window: Window, start: int) -> Member:
    name: bytes | None = None
    size: int | None = None
    offset = start
    while True:
        header = window.get(offset, offset + BLOCK)
        if not _is_header(header):
            raise Damage(offset)
        kind, num_bytes = header[156:157], _number(header[124:136])
        data_start = offset + BLOCK
        if kind not in _EXTENSION:
            break
        if num_bytes > _MAX_EXTENSION_BYTES:
            raise Damage(offset)
        data = window.get(data_start, data_start + num_bytes)
        if kind == b"L":
            name = data.split(b"\0", 1)[0]
        elif kind == b"x":
            records = _pax_records(data)
            name = records.get(b"path", name)
            size = int(records[b"size"]) if records.get(b"size", b"").isdigit() else size
        offset = data_start + -(-num_bytes // BLOCK) * BLOCK
    name = name if name is not None else _short_name(header)
    text = name.decode("utf-8", "surrogateescape")
    regular = kind in _REGULAR and not text.endswith("/")
    # Links, folders and devices have no payload, whatever their size field says.
    payload = (num_bytes if size is None else size) if kind not in b"123456" else 0
    return Member(start, text, data_start, payload, regular)


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # Only POSIX headers have the prefix field; GNU keeps times there.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The records '<length> <key>=<value>\\n' of a PAX header; the rest of a broken one is left."""
    records: dict[bytes, bytes] = {}
    at = 0
    while match := _PAX_RECORD.match(data, at):
        length = int(match[1])
        end = at + length
        if end > len(data) or length == 0 or data[end - 1 : end] != b"\n":
            break
        records[match[2]] = data[match.end() : end - 1]
        at = end
    return records


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a 512-byte block is right; unsigned, or signed as old tars wrote."""
    if len(block) < BLOCK or block[0] == 0:
        return False
    digits = block[148:156].split(b"\0", 1)[0].strip()
    try:
        expected = int(digits, 8)
    except ValueError:
        return False
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    if unsigned == expected:
        return True
    high = sum(1 for byte in block[:148] + block[156:] if byte > 127)
    return unsigned - 256 * high == expected


def _number(field: bytes) -> int:
    """A size: octal digits, or base 256 for what does not fit. Nonsense counts as 0 bytes."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return 0
