"""Transparency: colours are blended on white or black."""

from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.images.formats.common import Background

Pixels = NDArray[np.uint8]

_STRIP: Final = 256


def blend(colours: Pixels, opacity: Pixels | None, background: Background) -> Pixels:
    """Blend RGB (H, W, 3) with its opacity (H, W) on the background; "drop" ignores it."""
    if opacity is None or background == "drop":
        return colours
    blended = np.empty_like(colours)
    for rows in strips(len(colours)):
        blended[rows] = blend_on(np.dstack([colours[rows], opacity[rows]]), background)
    return blended


def strips(height: int) -> Iterator[slice]:
    """Yield rows to convert at a time: whole copies of a large image would need most memory."""
    for top in range(0, height, _STRIP):
        yield slice(top, min(top + _STRIP, height))


def blend_on(pixels: Pixels, background: Background, *, code: int = cv2.COLOR_RGBA2RGB) -> Pixels:
    """Blend RGBA pixels (H, W, 4), or the input of `code`, on white or black: RGB (H, W, 3)."""
    colours = cv2.cvtColor(np.ascontiguousarray(pixels), code)
    opacity = cv2.extractChannel(pixels, 3)
    if opacity.min() == 255:
        return colours
    opacity = cv2.merge((opacity, opacity, opacity))
    if background == "black":
        return cv2.multiply(colours, opacity, scale=1 / 255)
    # On white, opacity scales the difference of the colours to white.
    return cv2.bitwise_not(cv2.multiply(cv2.bitwise_not(colours), opacity, scale=1 / 255))
