"""Result of a header parser: an `ImageHeader`, or an `ImageError` with the reason."""

import struct
from dataclasses import dataclass
from typing import Final, Literal, get_args

from shards.records import Reason

Format = Literal[
    "jpeg",
    "png",
    "webp",
    "gif",
    "avif",
    "bmp",
    "tiff",
    "jpeg2000",
    "ppm",
    "ico",
    "qoi",
    "psd",
    "heic",
    "jxl",
]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
Background = Literal["white", "black", "drop"]
DeepLevels = Literal["scale", "stretch", "percentiles"]

TAKE_THREE_BANDS: Final = "take three, such as `gdal_translate -b 1 -b 2 -b 3 FILE THREE.tif`"
# Pixel limit of formats that Pillow decodes in Python, at a microsecond or more per pixel.
_MAX_SLOW_PIXELS: Final = 4_000_000
# Memory that decoding a JPEG takes.
_BYTES_PER_PIXEL: Final = 9
ORIENTATION_TAG = 0x0112


class ImageError(Exception):
    """The image cannot be used; `reason` is the reason of the reject."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Encoded image with the fields of its header and its decode settings.

    `height` and `width` are those after `orientation`, the EXIF number 1..8, is applied. Only the
    first of `num_frames` frames is used. `bits` counts the bits per channel. `alpha`: there may be
    transparency, which is blended on `background`; "drop" ignores it. `plain`: the file has no
    unusual features, so every decoder gives the same pixels. `to_srgb`: convert the colours from
    the embedded profile to sRGB. `num_bands` counts the channels that are stored; an image of other
    bands than colours and transparency keeps its first three, or one. `deep_levels`: how more than
    eight bits become eight. `bits_in_use`: bits of the largest level, 0 if it was not measured.
    """

    data: bytes
    format: Format
    height: int
    width: int
    orientation: int = 1
    num_frames: int = 1
    bits: int = 8
    alpha: bool = False
    cmyk: bool = False
    icc_profile: bool = False
    plain: bool = False
    background: Background = "drop"
    to_srgb: bool = False
    num_bands: int = 3
    deep_levels: DeepLevels = "scale"
    bits_in_use: int = 0

    @property
    def weight(self) -> float:
        """Decode cost per pixel in time and memory, relative to a JPEG."""
        if self.format == "jpeg2000":
            return 3.0
        if self.format == "tiff" and self.num_dropped_bands:  # all bands are decoded
            return max(1.0, (self.num_bands * self.bits / 8 + 3) / _BYTES_PER_PIXEL)
        costly = self.cmyk or (self.format == "webp" and self.num_frames > 1)
        return 2.0 if costly else 1.0

    @property
    def num_dropped_bands(self) -> int:
        """Number of stored channels that are neither colours nor transparency."""
        colours = 4 if self.cmyk else 3 if self.num_bands >= 3 else 1
        return max(0, self.num_bands - colours - self.alpha)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width in the file, before `orientation` is applied."""
        upright = (self.height, self.width)
        return upright if self.orientation < 5 else upright[::-1]


def orient_size(size: tuple[int, int], orientation: int) -> tuple[int, int, int]:
    """Return upright height and width of a stored (height, width), and the orientation.

    Orientations 5 to 8 swap the two; invalid orientations become 1.
    """
    if not 1 <= orientation <= 8:
        orientation = 1
    height, width = size if orientation < 5 else size[::-1]
    return height, width, orientation


def exif_orientation(tiff: bytes) -> int:
    """Return the orientation in an EXIF block; 1 if it has none or is unreadable."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == ORIENTATION_TAG:
                value = {3: "H", 4: "I"}[kind]
                return int(struct.unpack_from(f"{order}{value}", tiff, entry + 8)[0])
    except (KeyError, struct.error):
        # Broken EXIF is common and does not affect the pixels.
        return 1
    return 1


def refuse_slow(height: int, width: int, what: str) -> None:
    """Raise ImageError if decoding, which is done in Python, would take seconds."""
    if height * width > _MAX_SLOW_PIXELS:
        raise ImageError(
            "too_large", f"{width}x{height}; {what} is slow and may have {_MAX_SLOW_PIXELS} pixels"
        )


def refuse_short(data: bytes, needed: int) -> None:
    """Raise ImageError if the uncompressed pixels need more bytes than the file has."""
    if len(data) < needed:
        raise ImageError("truncated", f"{len(data)} of at least {needed} bytes")
