"""What is this file? Format, size, orientation and what is special, without decoding a pixel.

A file's name is never looked at. JPEG, PNG, WebP and GIF are nearly all of the web and are walked
through to their end, because what a decoder would silently paint grey has to be found here.
"""

import re
import struct
from collections.abc import Callable
from typing import Final

from shards.images.formats.bitmaps import inspect_bmp, inspect_ico, inspect_ppm, inspect_qoi
from shards.images.formats.codecs import inspect_avif, inspect_jpeg2000, inspect_psd
from shards.images.formats.common import FORMATS, Background, Format, ImageError, ImageHeader
from shards.images.formats.gif import inspect_gif
from shards.images.formats.jpeg import inspect_jpeg
from shards.images.formats.png import inspect_png
from shards.images.formats.tiff import inspect_tiff
from shards.images.formats.webp import inspect_webp

__all__ = ["FORMATS", "MAX_SIDE", "Background", "Format", "ImageHeader", "ImageError", "inspect"]

# Above this side the boxes of `crops.recipe`, relative numbers in float32, would lose pixels.
MAX_SIDE: Final = 2**22

# A list of what may come in, because Pillow would also start Ghostscript for an EPS and tries
# dozens of plugins on anything it is given.
_READERS: Final[tuple[tuple[re.Pattern[bytes], Format, Callable[[bytes], ImageHeader]], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), "jpeg", inspect_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png", inspect_png),
    (re.compile(rb"(?s)RIFF....WEBP"), "webp", inspect_webp),
    (re.compile(rb"GIF8[79]a"), "gif", inspect_gif),
    (re.compile(rb"(?s)....ftyp(avif|avis|mif1|msf1)"), "avif", inspect_avif),
    (re.compile(rb"BM"), "bmp", inspect_bmp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "tiff", inspect_tiff),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "jpeg2000", inspect_jpeg2000),
    (re.compile(rb"P[1-6f]\s"), "ppm", inspect_ppm),
    (re.compile(rb"\0\0\x01\0"), "ico", inspect_ico),
    (re.compile(rb"qoif"), "qoi", inspect_qoi),
    (re.compile(rb"8BPS"), "psd", inspect_psd),
)


def inspect(data: bytes, formats: tuple[Format, ...] = ()) -> ImageHeader:
    """Say what `data` is, or raise `ImageError`. No pixel is decoded, so no bomb goes off.

    Of a format that is not among `formats`, nothing but its first bytes is read; () allows all.
    """
    if not data:
        raise ImageError("empty", "0 bytes")
    for magic, format_, read in _READERS:
        if magic.match(data):
            if formats and format_ not in formats:
                raise ImageError("format", f"{format_}; allowed are {', '.join(formats)}")
            return _checked(data, read)
    raise ImageError("not_an_image", f"begins with {data[:8]!r}")


def _checked(data: bytes, read: Callable[[bytes], ImageHeader]) -> ImageHeader:
    try:
        image = read(data)
    except (struct.error, IndexError) as error:
        # The walks read as if the file were whole; falling off its end says it is not.
        raise ImageError("truncated", f"the header ends after {len(data)} bytes") from error
    if image.height < 1 or image.width < 1:
        raise ImageError("broken_header", f"{image.height} x {image.width} pixels")
    if max(image.height, image.width) > MAX_SIDE:
        raise ImageError("too_large", f"{image.height} x {image.width} pixels")
    return image
