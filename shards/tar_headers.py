"""One header of a tar: is this block one, and what does it say? USTAR, GNU, PAX and old V7.

Long names and sizes come in extension headers before the header that they belong to; together
they are one `Member`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512
ZEROS = bytes(BLOCK)

_REGULAR = (b"0", b"\0", b"7")
_EXTENSION = (b"L", b"K", b"x", b"g")
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
_PAX_SIZE = re.compile(rb"\d{1,19}")
# Long names and PAX records are few and short; more before one member is damage or an attack.
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_EXTENSIONS = 16

Get = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """One logical member: `start` is where its first (extension) header lies."""

    start: int
    name: str
    data_start: int
    num_bytes: int
    regular: bool

    @property
    def data_stop(self) -> int:
        return self.data_start + self.num_bytes

    @property
    def end(self) -> int:
        """Where the next header may begin."""
        return self.data_start + -(-self.num_bytes // BLOCK) * BLOCK

    @property
    def key(self) -> str:
        """'a/b.seg.PNG' -> 'a/b': the key ends at the first dot of the file name."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def extension(self) -> str:
        """'a/b.seg.PNG' -> 'seg.png'."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


class Damage(Exception):
    """No member starts at `start`, though one must; look for the next from `resume` on."""

    def __init__(self, start: int, resume: int) -> None:
        super().__init__(start, resume)
        self.start, self.resume = start, resume


def read_member(get: Get, start: int) -> Member:
    """The member whose first header is at `start`. Raises Damage.

    `get(start, stop)` returns those bytes of the file, fewer at its end.
    """
    name: bytes | None = None
    size: int | None = None
    offset = start
    for _ in range(_MAX_EXTENSIONS + 1):
        header = get(offset, offset + BLOCK)
        if not is_header(header):
            raise Damage(start, offset + BLOCK)
        kind, num_bytes = header[156:157], _number(header[124:136])
        data_start = offset + BLOCK
        if kind not in _EXTENSION:
            break
        if data_start - start + num_bytes > _MAX_EXTENSION_BYTES:
            raise Damage(start, offset + BLOCK)
        data = get(data_start, data_start + num_bytes)
        if kind == b"L":
            name = data.split(b"\0", 1)[0]
        elif kind == b"x":
            records = _pax_records(data)
            name = records.get(b"path", name)
            if _PAX_SIZE.fullmatch(records.get(b"size", b"")):
                size = int(records[b"size"])
        offset = data_start + -(-num_bytes // BLOCK) * BLOCK
    else:
        raise Damage(start, offset)
    name = name if name is not None else _short_name(header)
    text = name.decode("utf-8", "surrogateescape")
    regular = kind in _REGULAR and not text.endswith("/")
    # Links, folders and devices have no payload, whatever their size field says.
    payload = (num_bytes if size is None else size) if kind not in b"123456" else 0
    return Member(start, text, data_start, payload, regular)


def is_header(block: bytes) -> bool:
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
        end = at + int(match[1])
        if not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            break
        records[match[2]] = data[match.end() : end - 1]
        at = end
    return records


def _number(field: bytes) -> int:
    """A size: octal digits, or base 256 for what does not fit. Nonsense counts as 0 bytes.

    Never negative: a member that ended before it began would be read for ever.
    """
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return max(0, int(field.split(b"\0", 1)[0].strip() or b"0", 8))
    except ValueError:
        return 0
