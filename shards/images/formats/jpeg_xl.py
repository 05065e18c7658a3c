"""JPEG XL header: the first fields of the codestream, bit by bit."""

import struct
from dataclasses import dataclass
from typing import Final, Self

from shards.images.formats.common import ImageError

_MAGIC = b"\xff\x0a"
_ALPHA, _SPOT_COLOUR, _COLOUR_FILTER = 0, 2, 5
_GREY = 1
_MAX_EXTRA = 64
_RATIOS: Final = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
# Fields of a number: how it is coded is chosen by two bits; each choice is (bits, offset).
_Choices = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
_SIDE: Final = ((9, 1), (13, 1), (18, 1), (30, 1))
_PREVIEW_BLOCKS: Final = ((0, 16), (0, 32), (5, 1), (9, 33))
_PREVIEW_SIDE: Final = ((6, 1), (8, 65), (10, 321), (12, 1345))
_ENUM: Final = ((0, 0), (0, 1), (4, 2), (6, 18))
_BITS: Final = ((0, 8), (0, 10), (0, 12), (6, 1))
_FLOAT_BITS: Final = ((0, 32), (0, 16), (0, 24), (6, 1))
_NUM_EXTRA: Final = ((0, 0), (0, 1), (4, 2), (12, 1))
_SHIFT: Final = ((0, 0), (0, 3), (0, 4), (3, 1))
_NAME_LENGTH: Final = ((0, 0), (4, 0), (5, 16), (10, 48))
_FILTER_CHANNEL: Final = ((0, 1), (2, 0), (4, 3), (8, 19))
_TICKS: Final = ((0, 100), (0, 1000), (10, 1), (30, 1))
_TICK_PARTS: Final = ((0, 1), (0, 1001), (8, 1), (10, 1))
_NUM_LOOPS: Final = ((0, 0), (3, 0), (16, 0), (32, 0))


@dataclass(frozen=True, slots=True)
class JpegXlInfo:
    """Fields of the header of a codestream."""

    height: int
    width: int
    orientation: int = 1
    animated: bool = False
    bits: int = 8
    num_extra: int = 0
    alpha: bool = False
    grey: bool = False
    icc_profile: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        size = (self.height, self.width)
        return size if self.orientation < 5 else size[::-1]

    @classmethod
    def read(cls, codestream: bytes) -> Self:
        """Read the fields. Raises IndexError beyond the end of the data."""
        bits = _Bits(codestream[len(_MAGIC) :])
        height, width = _read_size(bits)
        if bits.flag():  # all fields have their default
            return cls(height, width)
        orientation, animated = 1, False
        if bits.flag():
            orientation = 1 + bits.number(3)
            if bits.flag():
                _read_size(bits)  # the intrinsic size
            if bits.flag():
                _skip_preview(bits)
            animated = bits.flag()
            if animated:
                for choices in (_TICKS, _TICK_PARTS, _NUM_LOOPS):
                    bits.choice(choices)
                bits.flag()
        depth = _read_depth(bits)
        bits.flag()  # 16-bit buffers are enough
        num_extra = bits.choice(_NUM_EXTRA)
        if num_extra > _MAX_EXTRA:
            raise ImageError("broken_header", f"a JPEG XL of {num_extra} extra channels")
        kinds = [_read_extra(bits) for _ in range(num_extra)]
        bits.flag()  # XYB colours
        grey = icc_profile = False
        if not bits.flag():
            icc_profile = bits.flag()
            grey = bits.choice(_ENUM) == _GREY
        alpha = _ALPHA in kinds
        return cls(height, width, orientation, animated, depth, num_extra, alpha, grey, icc_profile)


def bare_codestream(data: bytes) -> bytes:
    """Return the codestream of a JPEG XL container; a bare codestream is returned as it is.

    Metadata are left out, so that a decoder neither turns the image by its EXIF nor restores the
    JPEG that it was made of.
    """
    if data.startswith(_MAGIC):
        return data
    parts, place = [], 0
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        body = place + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = place + length if length else len(data)
        if stop < body:
            raise ImageError("broken_header", f"a box of {length} bytes in a JPEG XL")
        if stop > len(data) and name in (b"jxlc", b"jxlp"):
            raise ImageError("truncated", f"{len(data)} of at least {stop} bytes")
        if name == b"jxlc":
            parts.append(data[body:stop])
        elif name == b"jxlp":  # a part begins with its number
            parts.append(data[body + 4 : stop])
        place = stop
    codestream = b"".join(parts)
    if not codestream.startswith(_MAGIC):
        raise ImageError("truncated", "no JPEG XL codestream")
    return codestream


class _Bits:
    """Reader of numbers whose lowest bit comes first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def number(self, num_bits: int) -> int:
        """Return a number of this many bits."""
        found = 0
        for bit in range(num_bits):
            byte = self._data[self._place >> 3]
            found |= (byte >> (self._place & 7) & 1) << bit
            self._place += 1
        return found

    def flag(self) -> bool:
        return self.number(1) == 1

    def choice(self, choices: _Choices) -> int:
        """Return a number that is coded in one of four ways."""
        num_bits, offset = choices[self.number(2)]
        return self.number(num_bits) + offset


def _read_size(bits: _Bits) -> tuple[int, int]:
    small = bits.flag()
    height = 8 * (bits.number(5) + 1) if small else bits.choice(_SIDE)
    ratio = bits.number(3)
    if ratio:
        across, down = _RATIOS[ratio]
        return height, height * across // down
    return height, 8 * (bits.number(5) + 1) if small else bits.choice(_SIDE)


def _skip_preview(bits: _Bits) -> None:
    choices = _PREVIEW_BLOCKS if bits.flag() else _PREVIEW_SIDE
    bits.choice(choices)
    if not bits.number(3):
        bits.choice(choices)


def _read_depth(bits: _Bits) -> int:
    """Return the bits per channel; floats also have a number of bits of the exponent."""
    if not bits.flag():
        return bits.choice(_BITS)
    depth = bits.choice(_FLOAT_BITS)
    bits.number(4)
    return depth


def _read_extra(bits: _Bits) -> int:
    """Return the kind of an extra channel."""
    if bits.flag():
        return _ALPHA
    kind = bits.choice(_ENUM)
    _read_depth(bits)
    bits.choice(_SHIFT)
    for _ in range(bits.choice(_NAME_LENGTH)):
        bits.number(8)
    if kind == _ALPHA:
        bits.flag()  # the colours are multiplied with it
    elif kind == _SPOT_COLOUR:
        bits.number(64)
    elif kind == _COLOUR_FILTER:
        bits.choice(_FILTER_CHANNEL)
    return kind
