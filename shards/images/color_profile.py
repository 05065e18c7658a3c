"""Colours of an embedded profile become sRGB, by LittleCMS on the decoded pixels."""

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# Profiles repeat: of a camera, of a program. A transform takes milliseconds to build.
_KEPT = 64


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) in sRGB. A profile that cannot be used, or is sRGB, changes nothing."""
    transform = _transform(profile)
    if transform is None:
        return pixels
    image = Image.fromarray(pixels)
    transform.apply_in_place(image)
    return np.array(image)


@lru_cache(maxsize=_KEPT)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # Four in five profiles of the web are some version of sRGB itself.
        if "sRGB" in ImageCms.getProfileDescription(given):
            return None
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (OSError, ImageCms.PyCMSError):
        # Broken, or not of RGB colours: the numbers are taken as they are.
        return None
