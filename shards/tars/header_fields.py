"""Fields of tar headers: numbers and PAX records."""

import re
from collections.abc import Callable, Iterator

BLOCK = 512

_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")

# Bytes [start, stop) of the file, fewer at its end.
Get = Callable[[int, int], bytes]


def padded(num_bytes: int) -> int:
    """Return the size of the data in a tar: whole blocks."""
    return -(-num_bytes // BLOCK) * BLOCK


def number(field: bytes) -> int:
    """Parse octal digits, or base 256 for large numbers. Invalid fields give 0.

    The result is never negative: a negative size would make a walk go back forever.
    """
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return max(0, int(field.split(b"\0", 1)[0].strip() or b"0", 8))
    except ValueError:
        return 0


def pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records '<length> <key>=<value>\\n' of a PAX header, up to a broken one."""
    at = 0
    while match := _PAX_RECORD.match(data, at):
        end = at + int(match[1])
        if not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            break
        yield match[2], data[match.end() : end - 1]
        at = end
