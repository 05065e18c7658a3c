"""Stored levels of an image: all bands, with all their bits, and how they become eight bits."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.images.blend import strips
from shards.images.formats.common import ImageError, ImageHeader
from shards.images.formats.optional_codecs import read_heic_levels, read_jxl_levels
from shards.images.tiff_bands import read_tiff_bands

# Formats whose levels OpenCV returns as they are stored.
_BY_OPENCV = frozenset({"png", "ppm", "jpeg2000", "avif"})
# Percentiles are taken of about this many levels.
_MAX_LEVELS = 1 << 20
_LOW, _HIGH = 1, 99


@dataclass(frozen=True, slots=True)
class StoredLevels:
    """Levels (H, W, C) of colours, C = 1 or 3, and of opacity (H, W), in `bits` bits.

    With `inverted` 0 is white.
    """

    colours: NDArray[Any]
    opacity: NDArray[Any] | None
    bits: int
    inverted: bool = False

    @property
    def bits_in_use(self) -> int:
        """Bits of the largest level; 0 for floats."""
        if self.colours.dtype.kind == "f":
            return 0
        return int(self.colours.max(initial=0)).bit_length()

    def eight_bits(self, image: ImageHeader) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Return RGB (H, W, 3) and opacity (H, W) in eight bits, as `image.deep_levels` says."""
        low, scale = self._range(image)
        height, width, num_bands = self.colours.shape
        pixels = np.empty((height, width, 3), np.uint8)
        opacity = None if self.opacity is None else np.empty((height, width), np.uint8)
        full = 255.0 if self.colours.dtype.kind == "f" else 1 / (1 << max(self.bits - 8, 0))
        for rows in strips(height):
            part = _scaled(self.colours[rows], low, scale)
            pixels[rows] = 255 - part if self.inverted else part
            if opacity is not None and self.opacity is not None:
                opacity[rows] = _scaled(self.opacity[rows], 0, full)
        assert num_bands in (1, 3)
        return pixels, opacity

    def _range(self, image: ImageHeader) -> tuple[float, float]:
        """Return the level that becomes 0, and the factor to eight bits."""
        is_float = self.colours.dtype.kind == "f"
        if image.deep_levels == "percentiles":
            low, high = self._percentiles()
            if high > low:
                return low, 255 / (high - low)
        if is_float:
            # Floats are from 0 to 1, unless one is larger.
            highest = float(np.nanmax(self.colours, initial=0))
            if highest <= 1:
                return 0, 255.0
            return 0, 1.0 if image.deep_levels == "scale" else 255 / highest
        if image.deep_levels == "scale":
            # As Pillow does for grey: 32 bits are read as 16.
            return 0, 1 / (1 << (min(self.bits, 16) - 8 if self.bits > 8 else 0))
        return 0, 1 / (1 << max(self.bits_in_use - 8, 0))

    def _percentiles(self) -> tuple[float, float]:
        """Return the 1st and 99th percentile, or minimum and maximum where these are equal."""
        step = int(np.ceil(np.sqrt(max(1, self.colours.size / _MAX_LEVELS))))
        some = self.colours[::step, ::step]
        low, high = np.nanpercentile(some, (_LOW, _HIGH))
        if low == high:
            low, high = np.nanmin(self.colours), np.nanmax(self.colours)
        return float(low), float(high)


def has_levels(image: ImageHeader) -> bool:
    """Return True if the decoder of an image gives all its bits; others give eight."""
    if image.format == "jxl":
        return image.num_bands == 1  # its plugin converts colours to eight bits
    if image.format in _BY_OPENCV and image.num_frames > 1:
        return False
    return not image.cmyk and image.format in ("tiff", "heic", *_BY_OPENCV)


def read_levels(image: ImageHeader) -> StoredLevels | None:
    """Return the levels of an image, None if its decoder does not give them. Raises ImageError."""
    if not has_levels(image):
        return None
    if image.format == "tiff":
        return _tiff_levels(image)
    bits = image.bits
    if image.format == "heic":
        stored = read_heic_levels(image.data)
    elif image.format == "jxl":
        stored, bits = read_jxl_levels(image.data), 16  # whatever number of bits is stored
    else:
        stored = _opencv_levels(image.data)
    if stored is None or stored.shape[:2] != image.stored_size:
        return None
    if stored.ndim == 2:
        return StoredLevels(stored[..., None], None, bits)
    if stored.shape[2] not in (3, 4):
        return StoredLevels(stored[..., :1], None, bits)
    opacity = stored[..., 3] if stored.shape[2] == 4 and image.alpha else None
    return StoredLevels(stored[..., :3], opacity, bits)


def _opencv_levels(data: bytes) -> NDArray[Any] | None:
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if stored is None or stored.ndim == 2 or stored.shape[2] not in (3, 4):
        return stored
    return stored[..., [2, 1, 0, *range(3, stored.shape[2])]]


def _tiff_levels(image: ImageHeader) -> StoredLevels | None:
    bands = read_tiff_bands(image.data)
    if bands is None:
        return None
    levels = bands.levels
    if levels.shape[:2] != image.stored_size:
        raise ImageError("undecodable", f"decoded to {levels.shape}, expected {image.stored_size}")
    return StoredLevels(
        levels[..., : bands.num_colours],
        None if bands.alpha is None else levels[..., bands.alpha],
        image.bits,
        bands.inverted,
    )


def measure_bits(image: ImageHeader) -> int:
    """Return the bits of the largest level of an image; 0 if they cannot be measured."""
    try:
        stored = read_levels(image)
    except ImageError:
        return 0
    return 0 if stored is None else stored.bits_in_use


def _scaled(levels: NDArray[Any], low: float, scale: float) -> NDArray[np.uint8]:
    scaled = (np.nan_to_num(levels.astype(np.float64)) - low) * scale
    eight_bits: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return eight_bits
