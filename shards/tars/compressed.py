"""Shards that are read whole: `.tar.gz`, `.tar.zst`, and plain tars on servers without ranges.

The stream is unpacked into an unnamed temporary file and cut there, so offsets of samples are those
in the unpacked tar. The compression is detected from the first bytes, not from the name. If a
stream ends early or is damaged, the samples before that point are used.
"""

import itertools
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import BinaryIO

import zstandard

from shards.errors import NotATar, ShardUnreadable
from shards.member_names import NameRule
from shards.records import Chunk, Reason, Reject, ShardInfo
from shards.redaction import redact
from shards.stores.range_reader import RangeReader
from shards.tars.cutter import CutChunk, cut_chunk

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# A shard may unpack to this multiple of its size, and always to 1 GiB; more is a bomb.
_MAX_RATIO, _ALWAYS_ALLOWED = 64, 1 << 30
# Input bytes per decoder call: few enough that a bomb cannot fill the memory in one call.
_GZIP_STEP, _ZSTD_STEP = 1 << 14, 1 << 10
_MAX_OUT = 1 << 20
# Largest decoder window, as in `zstd --decompress` without `--long`.
_MAX_WINDOW = 1 << 27
# A broken stream is called no tar only if at least this many bytes were unpacked.
_MIN_BYTES_TO_JUDGE = 1 << 16

Pieces = Iterator[bytes]


class _BrokenStream(Exception):
    """The compressed stream cannot be unpacked any further."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


def cut_whole(reader: RangeReader, shard: ShardInfo, chunk: Chunk) -> CutChunk:
    """Return all samples of a shard that is read whole. Raises NotATar, ShardUnreadable."""
    limit = max(_ALWAYS_ALLOWED, _MAX_RATIO * shard.num_bytes)
    with tempfile.TemporaryFile() as file:
        size, broken = _unpack(reader.read_whole(shard), limit, _writer(file, shard))
        file.flush()
        read = partial(_pread, file.fileno())
        return _cut_unpacked(read, size, chunk.shard, broken, shard.names)


def cut_whole_head(reader: RangeReader, shard: ShardInfo, num_bytes: int) -> CutChunk:
    """Return the samples within about the first `num_bytes` of the compressed shard."""
    first = next(reader.read_whole(shard))[:num_bytes]
    held = bytearray()
    size, broken = _unpack(iter([first]), _MAX_RATIO * num_bytes, held.extend)
    cut = _cut_unpacked(lambda a, b: bytes(held[a:b]), size, 0, broken, shard.names)
    return replace(cut, found=[item for item in cut.found if not isinstance(item, Reject)])


def _pread(file: int, start: int, stop: int) -> bytes:
    return os.pread(file, stop - start, start)


def _writer(file: BinaryIO, shard: ShardInfo) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            raise ShardUnreadable(
                f"{redact(shard.uri)} could not be unpacked in {tempfile.gettempdir()} "
                f"({error.strerror}); the unpacked shard must fit there: free some space, or set "
                "TMPDIR to another folder"
            ) from error

    return write


def _unpack(
    pieces: Pieces, limit: int, write: Callable[[bytes], object]
) -> tuple[int, _BrokenStream | None]:
    """Return the number of bytes written, and the error that ended the stream early."""
    size = 0
    first = next(pieces, b"")
    pieces = itertools.chain([first], pieces)
    try:
        for data in _decoder(first)(pieces):
            size += len(data)
            if size > limit:
                raise _BrokenStream("too_large", f"it unpacks to more than {limit} bytes")
            write(data)
    except _BrokenStream as broken:
        return size, broken
    return size, None


def _decoder(first: bytes) -> Callable[[Pieces], Pieces]:
    if first.startswith(_GZIP):
        return _gunzip
    return _unzstd if first.startswith(_ZSTD) else lambda pieces: pieces


def _gunzip(pieces: Pieces) -> Pieces:
    inflate = zlib.decompressobj(wbits=31)
    for data in _steps(pieces, _GZIP_STEP):
        while data:
            if inflate.eof:  # another gzip member, or zero padding, may follow
                data = data.lstrip(b"\0")
                if not data:
                    break
                inflate = zlib.decompressobj(wbits=31)
            yield from _inflate(inflate, data)
            data = inflate.unused_data
    if not inflate.eof:
        raise _BrokenStream("truncated_tar", "the gzip stream ends early")


def _inflate(inflate: "zlib._Decompress", data: bytes) -> Pieces:
    """Yield the output for `data`; if it is damaged, the output before the damage."""
    out = b"-"
    while out:
        before = inflate.copy()
        try:
            out = inflate.decompress(data, _MAX_OUT)
        except zlib.error as error:
            yield from _until_damage(before, data)
            raise _BrokenStream("broken_tar", f"the gzip stream is damaged: {error}") from error
        yield out
        data = inflate.unconsumed_tail


def _until_damage(inflate: "zlib._Decompress", data: bytes) -> Pieces:
    """Inflate byte by byte, because a failing call returns no output."""
    for byte in data:
        try:
            yield inflate.decompress(bytes([byte]))
        except zlib.error:
            return


def _unzstd(pieces: Pieces) -> Pieces:
    frames = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    frame = frames.decompressobj()
    for data in _steps(pieces, _ZSTD_STEP):
        while data:
            frame = frames.decompressobj() if frame.eof else frame
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise _BrokenStream("broken_tar", f"the zstd stream is damaged: {error}") from error
            if out:
                yield out
            data = frame.unused_data
    if not frame.eof:
        raise _BrokenStream("truncated_tar", "the zstd stream ends early")


def _steps(pieces: Iterable[bytes], step: int) -> Pieces:
    for piece in pieces:
        for start in range(0, len(piece), step):
            yield piece[start : start + step]


def _cut_unpacked(
    read: Callable[[int, int], bytes],
    size: int,
    row: int,
    broken: _BrokenStream | None,
    names: NameRule,
) -> CutChunk:
    whole = Chunk(row, 0, size)
    if broken is None:
        return cut_chunk(read, size, whole, names=names)
    if broken.reason == "too_large":
        return CutChunk([Reject(row, 0, "", broken.reason, broken.detail)])
    try:
        unpacked = cut_chunk(read, size, whole, names=names)
    except NotATar:
        if size >= _MIN_BYTES_TO_JUDGE:
            raise
        unpacked = CutChunk([])
    found = unpacked.found
    last = found[-1] if found else None
    if isinstance(last, Reject) and last.reason == "truncated_tar":
        detail = f"{last.detail}; {broken.detail}"
        found[-1] = replace(last, reason=broken.reason, detail=detail)
    else:
        found.append(Reject(row, size, "", broken.reason, broken.detail))
    return unpacked
