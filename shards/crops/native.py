"""The engine for any CPU: one decode per image, then all its crops in one call of the kernel.

A call runs on one thread, and outside the interpreter lock but for a few arrays of an image. So a
caller may run one engine in each of several threads, and has as many images at once as cores.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.crops.array_pool import ARRAYS
from shards.crops.engine import CropFailure, CroppedImages
from shards.crops.kernel.crop_kernel import CropKernel
from shards.crops.recipe import CropRecipe, pixel_boxes
from shards.images.decode import JPEG_REDUCTIONS, ORIENTATION_STEPS, can_reduce, decode
from shards.images.image_header import ImageError, ImageHeader

# A JPEG is decoded at 1/r of its size if every box keeps at least this many pixels for each pixel
# of its crop. On web images, 3 gives a mean difference of 0.6 grey levels to the full decode and a
# 99th percentile of 4, like Pillow's rounding of hue; 2 gives 0.9 and at least 6. A large camera
# image then takes less than half the time.
_PIXELS_TO_SPARE: Final = 3.0


class NativeEngine:
    """Executes the parameters of a recipe on a CPU, with the same bits on every CPU.

    Create it in the thread that crops. `level` is that of `CropKernel`. Raises ConfigError if this
    machine cannot run the kernel.
    """

    def __init__(self, recipe: CropRecipe, level: int | None = None) -> None:
        self.recipe = recipe
        self._kernel = CropKernel(level)
        sizes = [group.size for group in recipe.groups for _ in range(group.num_views)]
        self._sizes = np.array(sizes, np.int32)

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        """Return crops of N images from parameters (N, V, P); a bad image gives a failure."""
        parameters = np.ascontiguousarray(parameters)
        ok = np.zeros(len(images), np.bool_)
        crops = tuple(
            ARRAYS.empty((len(images), group.num_views, group.size, group.size, 3))
            for group in self.recipe.groups
        )
        boxes = pixel_boxes(parameters, [(image.height, image.width) for image in images])
        reductions = self._reductions(images, boxes)
        places = _view_places(crops)
        failures: list[CropFailure] = []
        row = 0
        for index, image in enumerate(images):
            try:
                reduction = reductions[index]
                pixels = np.ascontiguousarray(decode(image, reduction))
            except ImageError as error:
                failures.append(CropFailure(index, error.reason, error.detail))
                continue
            reduced = reduced_boxes(boxes[index], image, reduction)
            self._kernel.crop(pixels, reduced, parameters[index], self._sizes, places[row])
            ok[index] = True
            row += 1
        return CroppedImages(tuple(array[:row] for array in crops), ok, failures)

    def _reductions(self, images: Sequence[ImageHeader], boxes: NDArray[np.int64]) -> list[int]:
        """Return for every image the largest reduction that its boxes, of (N, V, 4), allow."""
        shortest = (boxes[..., 2:] - boxes[..., :2]).min(axis=-1)
        spare = (shortest / self._sizes).min(axis=-1) / _PIXELS_TO_SPARE
        return [
            max((factor for factor in JPEG_REDUCTIONS if factor <= room), default=1)
            if can_reduce(image)
            else 1
            for image, room in zip(images, spare.tolist(), strict=True)
        ]


def reduced_boxes(
    boxes: NDArray[np.int64], image: ImageHeader, reduction: int
) -> NDArray[np.float64]:
    """Return upright boxes (V, 4) in pixels of the image decoded at 1 / `reduction`.

    The decoder rounds the size up at the end of the stored image, which is the start of an image
    that is turned upside down.
    """
    reduced = boxes / reduction
    _, flip_rows, flip_columns = ORIENTATION_STEPS[image.orientation]
    if flip_rows:
        reduced[:, 0::2] += -(-image.height // reduction) - image.height / reduction
    if flip_columns:
        reduced[:, 1::2] += -(-image.width // reduction) - image.width / reduction
    return reduced


def _view_places(crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint64]:
    """Return the addresses (N, V) of all views in the arrays of a batch."""
    places = [
        array.ctypes.data
        + array.strides[0] * np.arange(array.shape[0])[:, None]
        + array.strides[1] * np.arange(array.shape[1])
        for array in crops
    ]
    return np.concatenate(places, axis=1).astype(np.uint64)
