"""An engine that decides and does not crop: for readers whose pictures are cropped elsewhere.

Whether a picture can be decoded is the verdict of `decoding`, the same at every reduction. So the
cheapest one is asked, and what passes comes out as it came in.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import Cropped, Failure
from shards.crops.recipe import CropRecipe
from shards.images.decode import REDUCED, can_reduce, decode_stored
from shards.images.image_header import Picture, PictureError


class VerifyingEngine:
    """Gives the pictures themselves, encoded: one array (ok.sum(),) of `Picture` for all groups."""

    def __init__(self, recipe: CropRecipe) -> None:
        self.recipe = recipe

    def crop(self, pictures: Sequence[Picture], parameters: NDArray[np.float32]) -> Cropped:  # noqa: ARG002
        """The pictures that any engine of this recipe can crop, and why not the others."""
        ok = np.zeros(len(pictures), np.bool_)
        failures: list[Failure] = []
        for index, picture in enumerate(pictures):
            try:
                decode_stored(picture, max(REDUCED) if can_reduce(picture) else 1)
            except PictureError as error:
                failures.append(Failure(index, error.reason, error.detail))
            else:
                ok[index] = True
        rows = as_rows([pictures[index] for index in np.flatnonzero(ok).tolist()])
        return Cropped((rows,), ok, failures)


def as_rows(pictures: Sequence[Picture]) -> NDArray[np.uint8]:
    """Pictures as an array (N,), to be handed on as crops are."""
    rows = np.empty(len(pictures), dtype=object)
    rows[:] = pictures
    return rows
