"""Headers of AVIF, JPEG 2000 and PSD, opened by Pillow without decoding a pixel."""

import re
import struct
from typing import Final

from PIL import AvifImagePlugin, Jpeg2KImagePlugin, PsdImagePlugin

from shards.images.formats.common import TAKE_THREE_BANDS, ImageError, ImageHeader, orient_size
from shards.images.formats.pillow_header import open_with_pillow

# OpenJPEG allocates about 10 kB for every tile of the grid, present or not.
_MAX_TILES: Final = 8192
_AV1_CONFIGURATION: Final = re.compile(rb"(?s)av1C\x81.(.)")
_HIGH_DEPTH, _TWELVE_BITS = 0x40, 0x20
_MAX_BANDS = 4  # that Pillow opens
_OPACITY = (1, 2)  # kinds of a channel: opacity, and opacity that the colours are multiplied with


def read_avif_header(data: bytes) -> ImageHeader:
    """Return the header of the first image of an AVIF."""
    (length,) = struct.unpack_from(">I", data)
    brands = {data[8:12], *(data[place : place + 4] for place in range(16, min(length, 256), 4))}
    if not brands & {b"avif", b"avis"}:
        raise ImageError("not_an_image", f"a HEIF of the brands {sorted(brands)}")
    image, num_frames, orientation = open_with_pillow(AvifImagePlugin.AvifImageFile, data)
    width, height = image.size
    depths = {match[1][0] for match in _AV1_CONFIGURATION.finditer(data, 0, 1 << 16)}
    deep = max(
        (10 + (depth & _TWELVE_BITS) // 16 for depth in depths if depth & _HIGH_DEPTH), default=8
    )
    return ImageHeader(
        data,
        "avif",
        *orient_size((height, width), orientation),
        num_frames=num_frames,
        bits=deep,
        alpha=image.mode == "RGBA",
        icc_profile="icc_profile" in image.info,
        num_bands=len(image.getbands()),
    )


def read_jpeg2000_header(data: bytes) -> ImageHeader:
    """Return the header of a JPEG 2000 file, or of a bare codestream."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start >= 0 and (more := struct.unpack_from(">H", data, start + 40)[0]) > _MAX_BANDS:
        raise ImageError("undecodable", f"a JPEG 2000 of {more} bands: {TAKE_THREE_BANDS}")
    image, _, _ = open_with_pillow(Jpeg2KImagePlugin.Jpeg2KImageFile, data)
    if start < 0:
        raise ImageError("truncated", "no JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, start + 8)
    (num_components,) = struct.unpack_from(">H", data, start + 40)
    if (right - left, bottom - top) != image.size or not tile_width or not tile_height:
        raise ImageError("broken_header", f"{image.size} holding {right - left, bottom - top}")
    num_tiles = -(-right // tile_width) * -(-bottom // tile_height)
    if num_tiles > _MAX_TILES:
        raise ImageError("too_large", f"{num_tiles} tiles, over {_MAX_TILES}")
    depths = data[start + 42 : start + 42 + 3 * num_components : 3]
    bits = max(((depth & 0x7F) + 1 for depth in depths), default=8)
    return ImageHeader(
        data,
        "jpeg2000",
        image.size[1],
        image.size[0],
        bits=max(bits, 8),
        alpha=image.mode == "PA" or _declares_alpha(data, start),
        cmyk=image.mode == "CMYK",
        num_bands=3 if image.mode in ("P", "PA") else num_components,
    )


def _declares_alpha(data: bytes, stop: int) -> bool:
    """Return True if a channel definition before the codestream names a channel opacity."""
    place = data.find(b"cdef", 0, stop)
    if place < 0:
        return False
    (num_channels,) = struct.unpack_from(">H", data, place + 4)
    kinds = (struct.unpack_from(">H", data, place + 8 + 6 * i)[0] for i in range(num_channels))
    return any(kind in _OPACITY for kind in kinds)


def read_psd_header(data: bytes) -> ImageHeader:
    """Return the header of the composite image of a Photoshop file; its layers must be valid."""
    image, _, _ = open_with_pillow(PsdImagePlugin.PsdImageFile, data)
    return ImageHeader(
        data,
        "psd",
        image.size[1],
        image.size[0],
        alpha=image.mode == "RGBA",
        cmyk=image.mode == "CMYK",
        icc_profile="icc_profile" in image.info,
        num_bands=struct.unpack_from(">H", data, 12)[0],
    )
