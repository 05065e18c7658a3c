"""What every format's header becomes: an `ImageHeader`, or an `ImageError` with the reason."""

import io
import struct
from dataclasses import dataclass
from typing import Final, Literal, get_args

from PIL import ImageFile

from shards.records import Reason

Format = Literal[
    "jpeg", "png", "webp", "gif", "avif", "bmp", "tiff", "jpeg2000", "ppm", "ico", "qoi", "psd"
]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
Background = Literal["white", "black", "drop"]

# Formats that Pillow decodes in Python, a microsecond or more a pixel, may have this many pixels.
_MAX_SLOW_PIXELS: Final = 4_000_000
_ORIENTATION_TAG = 0x0112


class ImageError(Exception):
    """This file cannot be used; `reason` is what a reject is counted under."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """An encoded image, what its header says, and how it is to be decoded.

    `height` and `width` hold after `orientation`, the EXIF number 1..8, has been applied. Only the
    first of the `num_frames` is ever used. `bits` are those of a channel. `alpha`: there may be
    transparency, which is laid on `background`; "drop" takes the colours that lie beneath.
    `plain`: nothing in the file is unusual, so that every decoder gives the same. `to_srgb`: the
    colours are to be converted from those of the profile.
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

    @property
    def weight(self) -> float:
        """How many pixels of a JPEG cost the time and memory that decoding one of these does."""
        if self.format == "jpeg2000":
            return 3.0
        costly = self.cmyk or (self.format == "webp" and self.num_frames > 1)
        return 2.0 if costly else 1.0

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width as they are in the file, before `orientation`."""
        upright = (self.height, self.width)
        return upright if self.orientation < 5 else upright[::-1]


def oriented(size: tuple[int, int], orientation: int) -> tuple[int, int, int]:
    """Upright height and width of a stored (height, width), and the orientation if it is one.

    Orientations 5 to 8 swap the two; numbers that are no orientation change nothing.
    """
    if not 1 <= orientation <= 8:
        orientation = 1
    height, width = size if orientation < 5 else size[::-1]
    return height, width, orientation


def exif_orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block, or 1 where it has none or cannot be read."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                value = {3: "H", 4: "I"}[kind]
                return int(struct.unpack_from(f"{order}{value}", tiff, entry + 8)[0])
    except (KeyError, struct.error):
        # Broken EXIF is common and says nothing about the pixels.
        return 1
    return 1


def open_header(
    plugin: type[ImageFile.ImageFile], data: bytes
) -> tuple[ImageFile.ImageFile, int, int]:
    """What a plugin of Pillow reads before any pixel, the number of frames, and the orientation.

    Plugins are used directly because `Image.open` refuses large sizes before it tells them.
    """
    try:
        image = plugin(io.BytesIO(data))
        num_frames = int(getattr(image, "n_frames", 1))
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception as error:
        # Broken files make the plugins raise OSError, SyntaxError, ValueError, TypeError, KeyError,
        # IndexError, OverflowError, NotImplementedError, struct.error and more: all mean the same.
        raise ImageError("broken_header", f"{type(error).__name__}: {error}") from error
    return image, num_frames, orientation


def refuse_slow(height: int, width: int, what: str) -> None:
    """Raise `ImageError` where decoding would take seconds, because it is done in Python."""
    if height * width > _MAX_SLOW_PIXELS:
        raise ImageError(
            "too_large", f"{width}x{height}; {what} may have {_MAX_SLOW_PIXELS} pixels, being slow"
        )


def refuse_short(data: bytes, needed: int) -> None:
    """Raise `ImageError` where uncompressed pixels would need more bytes than there are."""
    if len(data) < needed:
        raise ImageError("truncated", f"{len(data)} of at least {needed} bytes")
