"""Sparse files, which GNU tar stores without their zeros: the four formats of the sparse map.

The old GNU header contains the map. PAX records carry it in version 0.0 (one record per number)
and 0.1 (one record for all); version 1.0 puts it before the data.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shards.tars.header_fields import BLOCK, Get, number, padded

_NUMBER = re.compile(rb"\d{1,19}")
_ENTRY = 24
_IN_HEADER, _IN_EXTENSION = 4, 21
# Images have few holes; a longer map is damage or an attack.
_MAX_MAP_BYTES = 1 << 16


class SparseMapError(Exception):
    """The map of a sparse file is unreadable or inconsistent."""


@dataclass(frozen=True, slots=True)
class SparseMap:
    """File of `num_bytes`; its stored bytes, from `skip` on, fill `pieces` (offset, length)."""

    num_bytes: int
    pieces: tuple[tuple[int, int], ...]
    skip: int = 0

    def fill(self, stored: bytes) -> bytes:
        """Return the whole file. Raises SparseMapError if too few bytes are stored."""
        if self.skip + sum(length for _, length in self.pieces) > len(stored):
            raise SparseMapError
        out, at = bytearray(self.num_bytes), self.skip
        for offset, length in self.pieces:
            out[offset : offset + length] = stored[at : at + length]
            at += length
        return bytes(out)


def gnu_sparse_map(header: bytes, get: Get, data_start: int) -> tuple[SparseMap, int]:
    """Return the map of an old GNU sparse header, and the offset of the data after it."""
    numbers = _entries(header, 386, _IN_HEADER)
    more = header[482]
    first = data_start
    while more:
        block = get(data_start, data_start + BLOCK)
        if len(block) < BLOCK or data_start - first > _MAX_MAP_BYTES:
            raise SparseMapError
        numbers += _entries(block, 0, _IN_EXTENSION)
        more = block[504]
        data_start += BLOCK
    return _sparse_map(number(header[483:495]), numbers), data_start


def pax_sparse_map(
    records: Iterable[tuple[bytes, bytes]], get: Get, data_start: int, num_bytes: int
) -> SparseMap | None:
    """Return the map in PAX records, or in the data after them; None if the file is not sparse."""
    records = list(records)
    pax = dict(records)
    if b"GNU.sparse.map" in pax:
        size = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size", b""))
        return _sparse_map(_int(size), [_int(n) for n in pax[b"GNU.sparse.map"].split(b",") if n])
    if b"GNU.sparse.major" in pax:
        if (pax[b"GNU.sparse.major"], pax.get(b"GNU.sparse.minor")) != (b"1", b"0"):
            raise SparseMapError
        numbers, skip = _map_in_data(get, data_start, num_bytes)
        return _sparse_map(_int(pax.get(b"GNU.sparse.realsize", b"")), numbers, skip)
    if b"GNU.sparse.size" in pax:
        names = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        numbers = [_int(value) for name, value in records if name in names]
        return _sparse_map(_int(pax[b"GNU.sparse.size"]), numbers)
    return None


def _map_in_data(get: Get, data_start: int, num_bytes: int) -> tuple[list[int], int]:
    """Parse version 1.0: lines of decimal digits, the first is their count, padded to blocks."""
    text, stop = b"", data_start
    while stop - data_start < min(_MAX_MAP_BYTES, padded(num_bytes)):
        text += get(stop, stop + BLOCK)
        stop += BLOCK
        lines = text.split(b"\n")[:-1]
        count = 2 * _int(lines[0]) if lines else 0
        if lines and len(lines) > count:
            return [_int(line) for line in lines[1 : count + 1]], stop - data_start
    raise SparseMapError


def _entries(block: bytes, at: int, count: int) -> list[int]:
    return [number(block[i : i + 12]) for i in range(at, at + count * _ENTRY, _ENTRY // 2)]


def _sparse_map(num_bytes: int, numbers: Sequence[int], skip: int = 0) -> SparseMap:
    pieces = [(o, n) for o, n in zip(numbers[::2], numbers[1::2], strict=False) if n]
    at = 0
    for offset, length in pieces:
        if offset < at:
            raise SparseMapError
        at = offset + length
    if len(numbers) % 2 or at > num_bytes:
        raise SparseMapError
    return SparseMap(num_bytes, tuple(pieces), skip)


def _int(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise SparseMapError
    return int(text)
