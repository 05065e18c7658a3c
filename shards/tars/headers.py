"""Headers of a tar: recognition and parsing. USTAR, GNU, PAX and old V7.

Long names, sizes and sparse maps come in extension headers before the header that they describe;
together they are one `TarMember`. A global PAX header is a member without a name. Its paths and
sizes are ignored, because a reader that starts in the middle of a file cannot see it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple
from zlib import adler32

from shards.member_names import WEBDATASET_NAMES, NameRule
from shards.tars.header_fields import BLOCK as BLOCK
from shards.tars.header_fields import Get, number, padded, pax_records
from shards.tars.sparse_files import SparseMap, SparseMapError, gnu_sparse_map, pax_sparse_map

ZEROS = bytes(BLOCK)

_REGULAR, _SPARSE, _WITHOUT_DATA = b"0\0007S", b"S", b"123456"
_EXTENSION, _LONG_NAME, _PAX, _GLOBAL = b"LKxXg", b"L", b"xX", b"g"
_LINK = b"12"
_PAX_SIZE = re.compile(rb"\d{1,19}")
# Extension headers are few and short; more of them before one member is damage or an attack.
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_EXTENSIONS = 16
# Offset of the checksum field. It begins with two of these digits; in random data one block in 800
# does. A sum of one digit is never valid: with it, many random blocks would pass as headers.
CHECKSUM = 148
_DIGITS = b" 01234567"
_ASCII = bytes(range(128))
_IS_DIGIT = bytes(byte in _DIGITS for byte in range(256))


class TarMember(NamedTuple):
    """One logical member: `start` is the offset of its first (extension) header.

    `num_bytes` are stored in the tar; a sparse file is longer than that. `hides_headers`: its
    extension headers contain blocks that look like tar headers. `link`: a hard or symbolic link,
    which has a name and no bytes of its own. `hidden`: a file that `names` leaves out.
    """

    start: int
    name: str
    data_start: int
    num_bytes: int
    regular: bool
    sparse_map: SparseMap | None = None
    hides_headers: bool = False
    link: bool = False
    hidden: bool = False
    key: str = ""
    extension: str = ""

    @property
    def data_stop(self) -> int:
        return self.data_start + self.num_bytes

    @property
    def end(self) -> int:
        """Offset at which the next header may begin."""
        return self.data_start + padded(self.num_bytes)


class TarHeaderError(Exception):
    """There is no valid member at `start`; the search for the next one continues at `resume`."""

    def __init__(self, start: int, resume: int, found: str = "no header") -> None:
        super().__init__(start, resume, found)
        self.start, self.resume, self.found = start, resume, found


def read_member(get: Get, start: int, names: NameRule = WEBDATASET_NAMES) -> TarMember:
    """Return the member whose first header is at `start`. Raises TarHeaderError.

    `get(start, stop)` returns these bytes of the file, fewer at its end. A member that is `regular`
    is part of the sample `key`.
    """
    name: bytes | None = None
    records: list[tuple[bytes, bytes]] = []
    hides_headers = False
    offset = start
    for _ in range(_MAX_EXTENSIONS + 1):
        header = get(offset, offset + BLOCK)
        if not is_header(header):
            raise TarHeaderError(start, offset + BLOCK)
        kind, num_bytes = header[156], number(header[124:136])
        data_start = offset + BLOCK
        if kind not in _EXTENSION:
            break
        if kind in _GLOBAL and offset == start:
            return TarMember(start, "", data_start, num_bytes, regular=False)
        if data_start - start + num_bytes > _MAX_EXTENSION_BYTES:
            raise TarHeaderError(start, offset + BLOCK)
        data = get(data_start, data_start + num_bytes)
        hides_headers = hides_headers or next(header_offsets(data), None) is not None
        if kind in _LONG_NAME:
            name = data.split(b"\0", 1)[0]
        elif kind in _PAX:
            records += pax_records(data)
        offset = data_start + padded(num_bytes)
    else:
        raise TarHeaderError(start, offset)
    sparse_map, size = None, None
    if records:
        pax = dict(records)
        name = pax.get(b"GNU.sparse.name", pax.get(b"path", name))
        if _PAX_SIZE.fullmatch(pax.get(b"size", b"")):
            size = int(pax[b"size"])
    # Links, folders and devices have no payload; their size field is ignored.
    payload = (num_bytes if size is None else size) if kind not in _WITHOUT_DATA else 0
    try:
        if kind in _SPARSE:
            sparse_map, data_start = gnu_sparse_map(header, get, data_start)
        elif records:
            sparse_map = pax_sparse_map(records, get, data_start, payload)
    except SparseMapError:
        raise TarHeaderError(start, data_start, "a sparse file without a readable map") from None
    text = (name if name is not None else _short_name(header)).decode("utf-8", "surrogateescape")
    is_file = kind in _REGULAR and not text.endswith("/")
    hidden = is_file and names.leaves_out(text)
    return TarMember(
        start,
        text,
        data_start,
        payload,
        is_file and not hidden,
        sparse_map,
        hides_headers,
        kind in _LINK,
        hidden,
        *names.split(text),
    )


def is_header(block: bytes) -> bool:
    """Return True if the checksum of a block is right: unsigned, or signed as in old tars."""
    if (
        len(block) < BLOCK
        or block[0] == 0
        or block[CHECKSUM] not in _DIGITS
        or block[CHECKSUM + 1] not in _DIGITS
    ):
        return False
    field = block[CHECKSUM : CHECKSUM + 8]
    try:
        expected = int(field.split(b"\0", 1)[0], 8)
    except ValueError:
        return False
    # The low half of Adler-32 is 1 + the sum of up to 256 bytes, ten times as fast as `sum`.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:BLOCK]) & 0xFFFF) - 2
    unsigned = total - sum(field) + 8 * 32
    if unsigned == expected:
        return True
    rest = block[:CHECKSUM] + block[CHECKSUM + 8 : BLOCK]
    high = len(rest.translate(None, _ASCII))
    return unsigned - 256 * high == expected


def header_offsets(data: bytes, first: int = 0, stop: int | None = None) -> Iterator[int]:
    """Yield those of first, first + 512, ... below `stop` at which `data` holds a header."""
    last = len(data) if stop is None else max(0, stop + CHECKSUM)
    marks = data[first + CHECKSUM : last : BLOCK].translate(_IS_DIGIT)
    at = marks.find(1)
    while at >= 0:
        offset = first + at * BLOCK
        if is_header(data[offset : offset + BLOCK]):
            yield offset
        at = marks.find(1, at + 1)


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # Only POSIX headers have a prefix field; GNU stores times there.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
