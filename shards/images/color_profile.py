"""Conversion from an embedded colour profile to sRGB, by LittleCMS on decoded pixels."""

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# Cameras and programs repeat their profiles. Building a transform takes milliseconds.
_MAX_TRANSFORMS = 64


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """Convert RGB pixels (H, W, 3) to sRGB. An unusable or sRGB profile changes nothing."""
    transform = _transform(profile)
    if transform is None:
        return pixels
    image = Image.fromarray(pixels)
    transform.apply_in_place(image)
    return np.array(image)


@lru_cache(maxsize=_MAX_TRANSFORMS)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # Four in five profiles on the web are a version of sRGB.
        if "sRGB" in ImageCms.getProfileDescription(given):
            return None
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (OSError, ImageCms.PyCMSError):
        # Broken, or not a profile of RGB colours: keep the pixels.
        return None
