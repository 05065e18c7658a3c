"""Image headers: format, size, orientation and special features, without decoding a pixel.

The format is detected from the bytes, not from a file name. JPEG, PNG, WebP and GIF, nearly all
images of the web, are walked to their end to detect missing data, which decoders fill with grey.
"""

import re
import struct
from collections.abc import Callable
from typing import Final

from shards.images.formats.bitmaps import (
    read_bmp_header,
    read_ico_header,
    read_ppm_header,
    read_qoi_header,
)
from shards.images.formats.codecs import read_avif_header, read_jpeg2000_header, read_psd_header
from shards.images.formats.common import FORMATS, Background, Format, ImageError, ImageHeader
from shards.images.formats.foreign import foreign_format
from shards.images.formats.gif import read_gif_header
from shards.images.formats.jpeg import read_jpeg_header
from shards.images.formats.optional_codecs import read_heic_header, read_jxl_header
from shards.images.formats.png import read_png_header
from shards.images.formats.tiff import read_tiff_header
from shards.images.formats.webp import read_webp_header

__all__ = [
    "FORMATS",
    "MAX_SIDE",
    "Background",
    "Format",
    "ImageHeader",
    "ImageError",
    "has_image_magic",
    "read_image_header",
]

# On longer sides the crop boxes, relative numbers in float32, would lose pixel accuracy.
MAX_SIDE: Final = 2**22

# An explicit list, because Pillow would start Ghostscript for an EPS, and try dozens of plugins on
# any other bytes.
_READERS: Final[tuple[tuple[re.Pattern[bytes], Format, Callable[[bytes], ImageHeader]], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), "jpeg", read_jpeg_header),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png", read_png_header),
    (re.compile(rb"(?s)RIFF....WEBP"), "webp", read_webp_header),
    (re.compile(rb"GIF8[79]a"), "gif", read_gif_header),
    # A HEIF may name its codec as the first of its brands, or as one of the others.
    (
        re.compile(rb"(?s)....ftyp(?:avi[fs]|(?:mif1|mif2|msf1|miaf)....(?:....){0,16}?avi[fs])"),
        "avif",
        read_avif_header,
    ),
    (re.compile(rb"(?s)....ftyp(?:he[iv][cxms]|mif1|mif2|msf1|miaf)"), "heic", read_heic_header),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "jxl", read_jxl_header),
    (re.compile(rb"BM"), "bmp", read_bmp_header),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "tiff", read_tiff_header),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "jpeg2000", read_jpeg2000_header),
    (re.compile(rb"P[1-6f]\s"), "ppm", read_ppm_header),
    (re.compile(rb"\0\0\x01\0"), "ico", read_ico_header),
    (re.compile(rb"qoif"), "qoi", read_qoi_header),
    (re.compile(rb"8BPS"), "psd", read_psd_header),
)


def read_image_header(data: bytes, formats: tuple[Format, ...] = ()) -> ImageHeader:
    """Return the header of an encoded image, or raise ImageError. No pixel is decoded.

    `formats` lists the accepted formats; () accepts all. Only the first bytes of others are read.
    """
    if not data:
        raise ImageError("empty", "0 bytes")
    for magic, format_, read in _READERS:
        if magic.match(data):
            if formats and format_ not in formats:
                raise ImageError("format", f"{format_}; allowed are {', '.join(formats)}")
            return _checked(data, read)
    foreign = foreign_format(data)
    begin = f"begins with {data[:8]!r}"
    raise ImageError("not_an_image", begin if foreign is None else f"{foreign} ({begin})")


def has_image_magic(data: bytes) -> bool:
    """Return True if bytes begin as those of a supported format do."""
    return any(magic.match(data) for magic, _, _ in _READERS)


def _checked(data: bytes, read: Callable[[bytes], ImageHeader]) -> ImageHeader:
    try:
        image = read(data)
    except (struct.error, IndexError, OverflowError) as error:
        # The parsers do not check for the end of the data: reading beyond it means truncation.
        raise ImageError("truncated", f"the header ends after {len(data)} bytes") from error
    if image.height < 1 or image.width < 1:
        raise ImageError("broken_header", f"{image.height} x {image.width} pixels")
    if max(image.height, image.width) > MAX_SIDE:
        raise ImageError("too_large", f"{image.height} x {image.width} pixels")
    return image
