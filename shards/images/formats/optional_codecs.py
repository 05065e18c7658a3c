"""HEIC and JPEG XL, which are read where their libraries are installed: extras `heic` and `jxl`.

The header of a HEIC is opened by libheif, without decoding a pixel. The decoder of JPEG XL has no
such step, so the header is read here.
"""

import io
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from shards.images.formats.common import Format, ImageError, ImageHeader
from shards.images.formats.jpeg_xl import JpegXlInfo, bare_codestream
from shards.images.formats.pillow_header import open_with_pillow

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
try:
    from pillow_jxl import JpegXLImagePlugin
except ImportError:
    JpegXLImagePlugin = None

NEEDS_HEIC: Final = (
    "HEIC: install pillow-heif (pip install 'streamssl[heic]'), or convert it to JPEG"
)
NEEDS_JXL: Final = (
    "JPEG XL: install pillow-jxl-plugin (pip install 'streamssl[jxl]'), or convert it to PNG"
)

OPTIONAL_PLUGINS: dict[Format, type[ImageFile.ImageFile]] = {}
if pillow_heif is not None:
    # Callers parallelise over images.
    pillow_heif.options.DECODE_THREADS = 1
    OPTIONAL_PLUGINS["heic"] = pillow_heif.HeifImageFile
if JpegXLImagePlugin is not None:
    JpegXLImagePlugin.DECODE_THREADS = 0
    OPTIONAL_PLUGINS["jxl"] = JpegXLImagePlugin.JXLImageFile


def read_heic_header(data: bytes) -> ImageHeader:
    """Return the header of the primary image of a HEIC.

    The decoder itself turns the image by the rotation of the container. An EXIF orientation in a
    HEIC repeats it, so it is not read.
    """
    if "heic" not in OPTIONAL_PLUGINS:
        raise ImageError("not_an_image", NEEDS_HEIC)
    image, num_frames, _ = open_with_pillow(OPTIONAL_PLUGINS["heic"], data)
    return ImageHeader(
        data,
        "heic",
        image.size[1],
        image.size[0],
        num_frames=num_frames,
        bits=max(8, int(image.info.get("bit_depth", 8))),
        alpha=image.mode in ("RGBA", "LA", "RGBa"),
        icc_profile="icc_profile" in image.info,
        num_bands=len(image.getbands()),
    )


def read_jxl_header(data: bytes) -> ImageHeader:
    """Return the header of a JPEG XL, or of its container."""
    if "jxl" not in OPTIONAL_PLUGINS:
        raise ImageError("not_an_image", NEEDS_JXL)
    try:
        info = JpegXlInfo.read(bare_codestream(data))
    except (struct.error, IndexError) as error:
        raise ImageError("truncated", f"the header ends after {len(data)} bytes") from error
    # The decoder makes the image upright.
    height, width = info.upright_size
    return ImageHeader(
        data,
        "jxl",
        height,
        width,
        num_frames=2 if info.animated else 1,
        bits=max(8, info.bits),
        alpha=info.alpha,
        icc_profile=info.icc_profile,
        num_bands=(1 if info.grey else 3) + info.num_extra,
    )


def read_heic_levels(data: bytes) -> NDArray[Any] | None:
    """Return all bits of the primary image of a HEIC; None if it cannot be decoded so."""
    try:
        file = pillow_heif.open_heif(
            io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False
        )
        return np.asarray(file[file.primary_index])
    except Exception:  # the plugin of Pillow, which is tried next, names the cause
        return None


def read_jxl_levels(data: bytes) -> NDArray[Any] | None:
    """Return all bits of a grey JPEG XL; None if it cannot be decoded so."""
    try:
        with OPTIONAL_PLUGINS["jxl"](io.BytesIO(bare_codestream(data))) as image:
            levels = np.asarray(image)
    except Exception:  # the decoder of eight bits, which is tried next, names the cause
        return None
    return levels if levels.ndim == 2 and levels.dtype.itemsize > 1 else None
