"""Shards that are read whole: `.tar.gz`, `.tar.zst`, and plain ones on servers without ranges.

What comes is unpacked into a file without a name, on the disk that holds temporary files, and cut
there. So the offsets of samples are those in the unpacked tar. What a file is shows in its first
bytes; its name is not asked. Of a stream that ends early or breaks, everything before is used.
"""

import itertools
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import zstandard

from shards.errors import NotATar, ShardUnreadable
from shards.records import Chunk, Reason, Reject, ShardInfo
from shards.redaction import redact
from shards.stores.range_reader import RangeReader
from shards.tars.cutter import CutChunk, cut_chunk

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# A shard may become so many times as long, and any shard so long: more is a bomb.
_MAX_RATIO, _ALWAYS_ALLOWED = 64, 1 << 30
# Given to a decoder at once: few enough that a bomb cannot fill the memory in one call.
_GZIP_STEP, _ZSTD_STEP = 1 << 14, 1 << 10
_MAX_OUT = 1 << 20
# As `zstd --decompress` without `--long`: what a decoder may have to remember.
_MAX_WINDOW = 1 << 27
# Of a stream that broke, so much must have come before it is said to hold no tar.
_ENOUGH_TO_TELL = 1 << 16

Pieces = Iterator[bytes]


class _Broken(Exception):
    """The packed stream cannot be followed any further."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


def cut_whole(reader: RangeReader, shard: ShardInfo, chunk: Chunk) -> CutChunk:
    """All samples of a shard that is one chunk. Raises NotATar, ShardUnreadable."""
    limit = max(_ALWAYS_ALLOWED, _MAX_RATIO * shard.num_bytes)
    with tempfile.TemporaryFile() as file:
        size, broken = _unpack(reader.read_whole(shard), limit, _writer(file, shard))
        file.flush()
        return _cut_unpacked(lambda a, b: os.pread(file.fileno(), b - a, a), size, chunk, broken)


def cut_whole_head(reader: RangeReader, shard: ShardInfo, num_bytes: int) -> CutChunk:
    """The samples within about the first `num_bytes` of the packed shard, and no others."""
    first = next(reader.read_whole(shard))[:num_bytes]
    held = bytearray()
    size, broken = _unpack(iter([first]), _MAX_RATIO * num_bytes, held.extend)
    found = _cut_unpacked(lambda a, b: bytes(held[a:b]), size, Chunk(0, 0, size), broken).found
    return CutChunk([item for item in found if not isinstance(item, Reject)])


def _writer(file: BinaryIO, shard: ShardInfo) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            raise ShardUnreadable(
                f"{redact(shard.uri)} could not be unpacked in {tempfile.gettempdir()} "
                f"({error.strerror}); there must be room for the unpacked shard: make some, or "
                "name another folder in TMPDIR"
            ) from error

    return write


def _unpack(
    pieces: Pieces, limit: int, write: Callable[[bytes], object]
) -> tuple[int, _Broken | None]:
    """How many bytes were written, and why not all, if so."""
    size = 0
    first = next(pieces, b"")
    pieces = itertools.chain([first], pieces)
    try:
        for data in _decoder(first)(pieces):
            size += len(data)
            if size > limit:
                raise _Broken("too_large", f"it unpacks to more than {limit} bytes")
            write(data)
    except _Broken as broken:
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
            if inflate.eof:  # another member may follow, or zeros that fill a block of a tape
                data = data.lstrip(b"\0")
                if not data:
                    break
                inflate = zlib.decompressobj(wbits=31)
            yield from _inflate(inflate, data)
            data = inflate.unused_data
    if not inflate.eof:
        raise _Broken("truncated_tar", "the gzip stream ends early")


def _inflate(inflate: "zlib._Decompress", data: bytes) -> Pieces:
    """All that `data` gives, and if it is found to be damaged, all that comes before."""
    out = b"-"
    while out:
        before = inflate.copy()
        try:
            out = inflate.decompress(data, _MAX_OUT)
        except zlib.error as error:
            yield from _until_damage(before, data)
            raise _Broken("broken_tar", f"the gzip stream is damaged: {error}") from error
        yield out
        data = inflate.unconsumed_tail


def _until_damage(inflate: "zlib._Decompress", data: bytes) -> Pieces:
    """Byte by byte, because a call that fails gives nothing of what it found before."""
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
                raise _Broken("broken_tar", f"the zstd stream is damaged: {error}") from error
            if out:
                yield out
            data = frame.unused_data
    if not frame.eof:
        raise _Broken("truncated_tar", "the zstd stream ends early")


def _steps(pieces: Iterable[bytes], step: int) -> Pieces:
    for piece in pieces:
        for start in range(0, len(piece), step):
            yield piece[start : start + step]


def _cut_unpacked(
    read: Callable[[int, int], bytes], size: int, chunk: Chunk, broken: _Broken | None
) -> CutChunk:
    whole = Chunk(chunk.shard, 0, size)
    if broken is None:
        return cut_chunk(read, size, whole)
    if broken.reason == "too_large":
        return CutChunk([Reject(chunk.shard, 0, "", broken.reason, broken.detail)])
    try:
        unpacked = cut_chunk(read, size, whole)
    except NotATar:
        if size >= _ENOUGH_TO_TELL:
            raise
        unpacked = CutChunk([])
    found = unpacked.found
    last = found[-1] if found else None
    if isinstance(last, Reject) and last.reason == "truncated_tar":
        detail = f"{last.detail}; {broken.detail}"
        found[-1] = Reject(last.shard, last.offset, last.key, broken.reason, detail)
    else:
        found.append(Reject(chunk.shard, size, "", broken.reason, broken.detail))
    return unpacked
