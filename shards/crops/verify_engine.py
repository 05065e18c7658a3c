"""An engine that verifies images and does not crop: for readers if trainers crop.

An image is decoded at the cheapest reduction, because `images.decode` accepts or refuses an image
at every reduction alike. Accepted images are returned encoded.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CropFailure, CroppedImages
from shards.crops.recipe import CropRecipe
from shards.images.decode import JPEG_REDUCTIONS, can_reduce, decode_stored
from shards.images.image_header import ImageError, ImageHeader
from shards.images.stored_levels import measure_bits


class VerifyingEngine:
    """Returns the encoded images: one array (ok.sum(),) of `ImageHeader` for all groups.

    With `with_bits` it also measures their `bits_in_use`.
    """

    def __init__(self, recipe: CropRecipe, *, with_bits: bool = False) -> None:
        self.recipe = recipe
        self._with_bits = with_bits

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:  # noqa: ARG002
        """Return the images that an engine of this recipe can crop, and failures of the others."""
        ok = np.zeros(len(images), np.bool_)
        failures: list[CropFailure] = []
        for index, image in enumerate(images):
            try:
                decode_stored(image, max(JPEG_REDUCTIONS) if can_reduce(image) else 1)
            except ImageError as error:
                failures.append(CropFailure(index, error.reason, error.detail))
            else:
                ok[index] = True
        good = [images[index] for index in np.flatnonzero(ok).tolist()]
        rows = as_rows([self._measured(image) for image in good])
        return CroppedImages((rows,), ok, failures)

    def _measured(self, image: ImageHeader) -> ImageHeader:
        if not self._with_bits or image.bits <= 8:
            return image
        return replace(image, bits_in_use=measure_bits(image))


def as_rows(images: Sequence[ImageHeader]) -> NDArray[np.uint8]:
    """Return images as an array (N,), in the place of crops."""
    rows = np.empty(len(images), dtype=object)
    rows[:] = images
    return rows
