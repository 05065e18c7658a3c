"""AVIF, JPEG 2000 and PSD: their headers are opened by Pillow, which decodes nothing for it."""

import re
import struct
from typing import Final

from PIL import AvifImagePlugin, Jpeg2KImagePlugin, PsdImagePlugin

from shards.images.formats.common import ImageError, ImageHeader, open_header, oriented

# OpenJPEG keeps some 10 kB for every tile of the grid, whether it is there or not.
_MAX_TILES: Final = 8192
_AV1_CONFIGURATION: Final = re.compile(rb"(?s)av1C\x81.(.)")
_HIGH_DEPTH, _TWELVE_BITS = 0x40, 0x20


def inspect_avif(data: bytes) -> ImageHeader:
    """The first image of an AVIF. Of its relatives, HEIC among them, none can be decoded."""
    (length,) = struct.unpack_from(">I", data)
    brands = {data[8:12], *(data[place : place + 4] for place in range(16, min(length, 256), 4))}
    if not brands & {b"avif", b"avis"}:
        raise ImageError("not_an_image", f"a HEIF of the brands {sorted(brands)}")
    image, num_frames, orientation = open_header(AvifImagePlugin.AvifImageFile, data)
    width, height = image.size
    depths = {match[1][0] for match in _AV1_CONFIGURATION.finditer(data, 0, 1 << 16)}
    deep = max(
        (10 + (depth & _TWELVE_BITS) // 16 for depth in depths if depth & _HIGH_DEPTH), default=8
    )
    return ImageHeader(
        data,
        "avif",
        *oriented((height, width), orientation),
        num_frames=num_frames,
        bits=deep,
        alpha=image.mode == "RGBA",
        icc_profile="icc_profile" in image.info,
    )


def inspect_jpeg2000(data: bytes) -> ImageHeader:
    """A JPEG 2000 file, or a bare codestream."""
    image, _, _ = open_header(Jpeg2KImagePlugin.Jpeg2KImageFile, data)
    start = data.find(b"\xff\x4f\xff\x51")
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
        alpha=image.mode in ("RGBA", "LA", "PA"),
        cmyk=image.mode == "CMYK",
    )


def inspect_psd(data: bytes) -> ImageHeader:
    """The composite of a Photoshop file, whose layers must be sound and are not looked at."""
    image, _, _ = open_header(PsdImagePlugin.PsdImageFile, data)
    return ImageHeader(
        data,
        "psd",
        image.size[1],
        image.size[0],
        alpha=image.mode == "RGBA",
        cmyk=image.mode == "CMYK",
        icc_profile="icc_profile" in image.info,
    )
