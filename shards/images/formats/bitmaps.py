"""Headers of BMP, PPM, QOI and ICO, whose pixels are uncompressed, or nearly so."""

import re
import struct
from typing import Final

from PIL import BmpImagePlugin

from shards.images.formats.common import (
    ImageError,
    ImageHeader,
    refuse_short,
    refuse_slow,
)
from shards.images.formats.pillow_header import open_with_pillow
from shards.images.formats.png import read_png_header

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def read_bmp_header(data: bytes) -> ImageHeader:
    """Return the header of a BMP of any Windows or OS/2 version; all rows must be present."""
    image, _, _ = open_with_pillow(BmpImagePlugin.BmpImageFile, data)
    width, height = image.size
    codec, _, offset, arguments = image.tile[0]
    if codec == "raw":
        assert isinstance(arguments, tuple)
        _, stride, _ = arguments
        refuse_short(data, offset + stride * height)
    else:
        refuse_slow(height, width, "a BMP with run lengths")
    alpha = image.mode == "RGBA"
    return ImageHeader(data, "bmp", height, width, alpha=alpha, num_bands=3 + alpha)


_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])"
_PPM: Final = re.compile(
    rb"P(?:[14]" + _SPACE + rb"+(\d{1,9})" + _SPACE + rb"+(\d{1,9})\s"
    rb"|([2356])" + _SPACE + rb"+(\d{1,9})" + _SPACE + rb"+(\d{1,9})" + _SPACE + rb"+(\d{1,9})\s"
    rb"|f" + _SPACE + rb"+(\d{1,9})" + _SPACE + rb"+(\d{1,9})" + _SPACE + rb"+([-+.\deE]{1,40})\s)"
)
_MAX_PPM_HEADER: Final = 1 << 16


def read_ppm_header(data: bytes) -> ImageHeader:
    """Return the header of a PBM, PGM, PPM or PFM; all pixels must be present."""
    match = _PPM.match(data, 0, _MAX_PPM_HEADER)
    if match is None:
        raise ImageError("broken_header", f"a PPM header {data[:40]!r}")
    kind = data[1:2]
    width, height, *rest = (
        field for field in match.groups() if field is not None and field != kind
    )
    return _ppm_image(data, kind, int(height), int(width), rest, match.end())


def _ppm_image(
    data: bytes, kind: bytes, height: int, width: int, rest: list[bytes], start: int
) -> ImageHeader:
    if kind == b"f":
        refuse_short(data, start + 4 * height * width)
        return ImageHeader(data, "ppm", height, width, bits=32, num_bands=1)
    max_value = int(rest[0]) if rest else 1
    if not 0 < max_value < 1 << 16:
        raise ImageError("broken_header", f"a PPM with maximum value {max_value}")
    values = height * width * (3 if kind in b"36" else 1)
    if kind in b"123":
        refuse_short(data, start + (values if kind == b"1" else 2 * values - 1))
    else:
        row = (width + 7) // 8 if kind == b"4" else values // max(height, 1)
        refuse_short(data, start + height * row * (2 if max_value > 255 else 1))
    if (
        not (kind == b"4" or max_value == 255 or (kind == b"5" and max_value == 65535))
        or kind in b"23"
    ):
        refuse_slow(height, width, "such a PPM")
    return ImageHeader(
        data,
        "ppm",
        height,
        width,
        bits=max(8, max_value.bit_length()),
        num_bands=3 if kind in b"36" else 1,
    )


def read_qoi_header(data: bytes) -> ImageHeader:
    """Return the header of a QOI, which Pillow decodes in Python."""
    width, height, channels, _ = struct.unpack_from(">IIBB", data, 4)
    if channels not in (3, 4):
        raise ImageError("broken_header", f"a QOI with {channels} channels")
    refuse_slow(height, width, "a QOI")
    return ImageHeader(data, "qoi", height, width, alpha=channels == 4, num_bands=channels)


_ICON_ENTRY: Final = struct.Struct("<BBBBHHII")


def read_ico_header(data: bytes) -> ImageHeader:
    """Return the header of the largest image of an icon."""
    inner = largest_icon(data)
    if inner.startswith(_PNG_MAGIC):
        png = read_png_header(inner)
        height, width = png.stored_size
        return ImageHeader(
            data, "ico", height, width, bits=png.bits, alpha=png.alpha, num_bands=png.num_bands
        )
    # The bitmap has twice the height: colours, then a mask.
    (length,) = struct.unpack_from("<I", inner)
    if length < 40:
        raise ImageError("broken_header", f"an icon with a header of {length} bytes")
    width, height = struct.unpack_from("<ii", inner, 4)
    if not 0 < width <= 256 or not 0 < height // 2 <= 256:
        raise ImageError("broken_header", f"an icon of {width} x {height // 2} pixels")
    return ImageHeader(data, "ico", height // 2, width, alpha=True, num_bands=4)


def largest_icon(data: bytes) -> bytes:
    """Return the largest, then deepest, image of an icon: a PNG, or a bitmap and mask."""
    (num_entries,) = struct.unpack_from("<H", data, 4)
    entries = [_ICON_ENTRY.unpack_from(data, 6 + 16 * index) for index in range(num_entries)]
    if not entries:
        raise ImageError("broken_header", "an icon without an image")
    best = max(entries, key=lambda entry: ((entry[0] or 256) * (entry[1] or 256), entry[5]))
    *_, length, offset = best
    inner = data[offset : offset + length]
    if len(inner) < length:
        raise ImageError("truncated", f"{len(inner)} of {length} bytes of an icon")
    return inner


def single_icon_file(inner: bytes) -> bytes:
    """Return an icon file with this bitmap and mask as its only image."""
    width, height = struct.unpack_from("<ii", inner, 4)
    (depth,) = struct.unpack_from("<H", inner, 14)
    entry = _ICON_ENTRY.pack(width & 255, height // 2 & 255, 0, 0, 1, depth, len(inner), 22)
    return b"\0\0\1\0\1\0" + entry + inner
