"""Decode images to pixels: with OpenCV where it is fast, else with Pillow.

`decode_stored` alone decides if an image can be decoded, and all engines follow it. Pillow gets the
images that OpenCV refuses, so an image is rejected only if neither can decode it. JPEGs without a
fault get the same pixels from `faultless_jpeg`, which is faster.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from shards.images.blend import blend, blend_on, strips
from shards.images.color_profile import to_srgb
from shards.images.faultless_jpeg import decode_faultless
from shards.images.formats.bitmaps import largest_icon, single_icon_file
from shards.images.formats.common import Format, ImageError, ImageHeader
from shards.images.formats.jpeg_xl import bare_codestream
from shards.images.formats.optional_codecs import OPTIONAL_PLUGINS
from shards.images.stored_levels import read_levels
from shards.records import Reason

Pixels = NDArray[np.uint8]

_READ_BY_OPENCV = frozenset({"jpeg", "png", "webp"})
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# OpenCV flags of a reduced decode, by reduction; `_FLAGS` adds colour.
JPEG_REDUCTIONS: Final = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# Used directly: `Image.open` tries every plugin, and refuses sizes that admission accepts.
_PLUGINS: Final[dict[Format, type[ImageFile.ImageFile]]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "jpeg2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "ppm": PpmImagePlugin.PpmImageFile,
    "ico": IcoImagePlugin.IcoImageFile,
    "qoi": QoiImagePlugin.QoiImageFile,
    "psd": PsdImagePlugin.PsdImageFile,
    **OPTIONAL_PLUGINS,
}
_ORIENTATION_TAG = 0x0112
_FILL, _FILL_OF_CMYK = 128, 64
_BLOCK: Final = 8

# Steps from a stored to an upright image: transpose, then flip rows, then flip columns.
ORIENTATION_STEPS: Final = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_INVERSE: Final = {6: 8, 8: 6}  # the other orientations are their own inverse


def decode(image: ImageHeader, reduction: int = 1) -> Pixels:
    """Decode to an upright uint8 RGB image (H, W, 3). Raises ImageError.

    `reduction` 2, 4 or 8 decodes a JPEG at this fraction of its size, rounded up; other formats
    ignore it. 16 bits become 8. Only the first frame of an animation is decoded.
    """
    if not can_reduce(image):
        reduction = 1
    return orient_pixels(decode_stored(image, reduction), image.orientation)


def can_reduce(image: ImageHeader) -> bool:
    """Return True if the decoder itself can reduce the image, which saves most of the work."""
    return image.format == "jpeg" and not image.cmyk


def decode_stored(image: ImageHeader, reduction: int = 1) -> Pixels:
    """Decode the image as stored, before its orientation is applied. Raises ImageError."""
    height, width = image.stored_size
    expected = (-(-height // reduction), -(-width // reduction), 3)
    pixels = _decode_levels(image)
    if pixels is None:
        pixels = decode_faultless(image, reduction)
    if pixels is None and image.format in _READ_BY_OPENCV:
        pixels = _decode_with_opencv(image, reduction)
    if pixels is None or pixels.shape != expected:
        pixels = _decode_with_pillow(image)
        if pixels.shape != (height, width, 3):
            expected = (height, width, 3)
            raise ImageError("undecodable", f"decoded to {pixels.shape}, expected {expected}")
        if reduction > 1:
            pixels = _shrink(pixels, expected)
    if image.format == "jpeg" and _ends_in_fill(image, pixels, reduction):
        raise ImageError("truncated", "the data end before the image: its last rows are plain grey")
    return to_srgb(pixels, _profile(image)) if image.to_srgb else pixels


def _decode_levels(image: ImageHeader) -> Pixels | None:
    """Decode from the stored levels; None if this image does not need them, or has none."""
    has_bands = image.format == "tiff" and image.num_dropped_bands > 0
    if not has_bands and (image.bits <= 8 or image.deep_levels == "scale"):
        return None
    stored = read_levels(image)
    if stored is None:
        return None
    return blend(*stored.eight_bits(image), image.background)


def orient_pixels(pixels: Pixels, orientation: int, *, mirror: bool = False) -> Pixels:
    """Make stored pixels upright; if `mirror`, then flip them left to right."""
    transpose, flip_rows, flip_columns = ORIENTATION_STEPS[orientation]
    flip_columns ^= mirror
    if transpose:
        pixels = cv2.transpose(pixels)
    if flip_rows or flip_columns:
        pixels = cv2.flip(pixels, -1 if flip_rows and flip_columns else int(flip_columns))
    return pixels


def stored_box(box: Sequence[int], image: ImageHeader) -> tuple[int, int, int, int]:
    """Convert an upright box to the coordinates of the stored image."""
    transpose, flip_rows, flip_columns = ORIENTATION_STEPS[image.orientation]
    y0, x0, y1, x1 = box
    if flip_rows:
        y0, y1 = image.height - y1, image.height - y0
    if flip_columns:
        x0, x1 = image.width - x1, image.width - x0
    return (x0, y0, x1, y1) if transpose else (y0, x0, y1, x1)


def _decode_with_opencv(image: ImageHeader, reduction: int) -> Pixels | None:
    """Decode with OpenCV; None if it fails or is not reliable for this image."""
    # OpenCV assumes inverted CMYK, and draws the first frame of an animation on the background.
    if image.cmyk or (image.format != "jpeg" and not image.plain):
        return None
    blended = image.alpha and image.background != "drop"
    flags = cv2.IMREAD_UNCHANGED if blended else _FLAGS | JPEG_REDUCTIONS[reduction]
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(image.data, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or not blended:
        return pixels
    if pixels.dtype != np.uint8 or pixels.shape[2:] != (4,):
        return None
    flat = np.empty((*pixels.shape[:2], 3), np.uint8)
    for rows in strips(len(flat)):
        flat[rows] = blend_on(pixels[rows], image.background, code=cv2.COLOR_BGRA2RGB)
    return flat


def _decode_with_pillow(image: ImageHeader) -> Pixels:
    with _open_plugin(image) as pil_image:
        applied = pil_image.getexif().get(_ORIENTATION_TAG, 1) if image.format == "tiff" else 1
        pil_image.load()
        pixels = _to_rgb(pil_image, image)
    # Pillow makes TIFFs upright by itself; undo this, because it is done later, or not at all.
    return (
        orient_pixels(pixels, _INVERSE.get(applied, applied))
        if applied in ORIENTATION_STEPS
        else pixels
    )


def _profile(image: ImageHeader) -> bytes:
    """Return the embedded colour profile; empty if Pillow cannot read the file."""
    try:
        with _open_plugin(image) as pil_image:
            profile = pil_image.info.get("icc_profile")
    except ImageError:
        return b""
    return profile if isinstance(profile, bytes) else b""


@contextmanager
def _open_plugin(image: ImageHeader) -> Iterator[ImageFile.ImageFile]:
    """Open the image with its Pillow plugin; any exception becomes ImageError."""
    try:
        data, plugin = image.data, _PLUGINS[image.format]
        if image.format == "ico":
            data = largest_icon(data)
            if data.startswith(b"\x89PNG"):
                plugin = PngImagePlugin.PngImageFile
            else:
                data = single_icon_file(data)
        elif image.format == "jxl":
            data = bare_codestream(data)
        with plugin(io.BytesIO(data)) as pil_image:
            yield pil_image
    except Exception as error:
        # On broken files decoders raise almost any exception; each costs one sample.
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        reason: Reason = "truncated" if "truncated" in detail else "undecodable"
        raise ImageError(reason, detail) from error


def _to_rgb(pil_image: Image.Image, image: ImageHeader) -> Pixels:
    if pil_image.mode.startswith("I") or pil_image.mode == "F":
        return _grey_to_rgb(pil_image, image)
    pixels = np.empty((pil_image.height, pil_image.width, 3), np.uint8)
    transparent = pil_image.has_transparency_data
    for rows in strips(pil_image.height):
        strip = pil_image.crop((0, rows.start, pil_image.width, rows.stop))
        if transparent and image.background != "drop":
            pixels[rows] = blend_on(np.asarray(strip.convert("RGBA")), image.background)
        elif transparent and pil_image.mode == "P":
            # Convert to RGBA first: Pillow warns if the transparency of a palette is dropped.
            pixels[rows] = np.asarray(strip.convert("RGBA"))[..., :3]
        else:
            pixels[rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _grey_to_rgb(pil_image: Image.Image, image: ImageHeader) -> Pixels:
    """Scale grey of more than eight bits, which the conversion of Pillow would clip to white."""
    levels = np.asarray(pil_image)
    # Floats are from 0 to 1, unless one is larger. With twelve bits, the upper four are empty in a
    # TIFF and filled in other formats.
    is_fraction = pil_image.mode == "F" and np.nanmax(levels, initial=0) <= 1
    shift = image.bits - 8 if image.format == "tiff" and 8 < image.bits < 16 else 8
    transparency = pil_image.info.get("transparency")
    pixels = np.empty((*levels.shape, 3), np.uint8)
    for rows in strips(len(levels)):
        if pil_image.mode == "F":
            grey = np.nan_to_num(levels[rows]) * (255.0 if is_fraction else 1.0)
        else:
            grey = levels[rows].astype(np.int64) >> shift
        grey = np.clip(grey, 0, 255).astype(np.uint8)
        if isinstance(transparency, int) and image.background != "drop":
            grey[levels[rows] == transparency] = 255 if image.background == "white" else 0
        pixels[rows] = grey[..., None]
    return pixels


def _shrink(pixels: Pixels, expected: tuple[int, ...]) -> Pixels:
    shrunk: Pixels = cv2.resize(pixels, expected[1::-1], interpolation=cv2.INTER_AREA)
    return shrunk


def _ends_in_fill(image: ImageHeader, pixels: Pixels, reduction: int) -> bool:
    """Return True if the last rows of a JPEG are the fill of decoders for missing data.

    The fill is exactly one grey and starts at the edge of a block; smooth chroma upsampling may
    change its first row. The full image is checked, so the result does not depend on the crops.
    """
    grey = _FILL_OF_CMYK if image.cmyk else _FILL
    if not (pixels[-1] == grey).all():
        return False
    if reduction > 1:
        full = _decode_with_opencv(image, 1)
        pixels = _decode_with_pillow(image) if full is None else full
    is_grey = (pixels == grey).all(axis=(1, 2))
    start = 0 if is_grey.all() else len(is_grey) - int(is_grey[::-1].argmin())
    return 0 < start <= len(is_grey) - _BLOCK and start % _BLOCK in (0, 1)
