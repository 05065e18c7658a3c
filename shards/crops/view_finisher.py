"""View finishers: the steps of a crop that follow its resize, on the device of the resized views.

An engine whose library decodes, crops and resizes leaves the mirror, the colours, the blur and the
solarisation (steps 3 to 7 of `recipe`) to a finisher. The one here runs on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.crops.kernel.crop_kernel import CropKernel
from shards.crops.recipe import CropRecipe
from shards.images.decode import ORIENTATION_STEPS, orient_pixels
from shards.records import CropArray


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizedViews:
    """Resized views of N images, not yet turned upright.

    `groups`: for every view group a dense uint8 array (N, V, S, S, 3) that offers DLPack;
    `parameters` (N, all views, P) as in `recipe`; `orientations`: N numbers of EXIF; `images` (N,):
    the rows of the batch that the images fill.
    """

    groups: Sequence[Any]
    parameters: NDArray[np.float32]
    orientations: Sequence[int]
    images: NDArray[np.int64]


class ViewFinisher(Protocol):
    """Executes what follows the resize. For one thread. Every call returns when all is done."""

    @property
    def device(self) -> Literal["cpu", "gpu"]: ...

    @property
    def stream(self) -> int | None:
        """Return the CUDA stream on which it works; None on a CPU."""

    def allocate(self, num_images: int) -> tuple[CropArray, ...]:
        """Return an array (N, V, S, S, 3) for every view group, to be filled."""

    def finish(self, views: ResizedViews, out: tuple[Any, ...]) -> None:
        """Write finished views to their rows of `out`."""

    def place(self, crops: Sequence[NDArray[np.uint8]], image: int, out: tuple[Any, ...]) -> None:
        """Copy the finished crops (1, V, S, S, 3) of one image to its row of `out`."""

    def select(self, out: tuple[Any, ...], images: NDArray[np.int64]) -> tuple[CropArray, ...]:
        """Return these rows of `out`."""


class NativeFinisher:
    """Finishes views with the crop kernel: resizing a view to its own size changes nothing."""

    device: Literal["cpu"] = "cpu"
    stream = None

    def __init__(self, recipe: CropRecipe) -> None:
        self._recipe = recipe
        self._kernel = CropKernel()

    def allocate(self, num_images: int) -> tuple[NDArray[np.uint8], ...]:
        return tuple(
            np.empty((num_images, group.num_views, group.size, group.size, 3), np.uint8)
            for group in self._recipe.groups
        )

    def finish(self, views: ResizedViews, out: tuple[Any, ...]) -> None:
        first = 0
        for group, resized, array in zip(self._recipe.groups, views.groups, out, strict=True):
            box = np.array([[0, 0, group.size, group.size]], np.float64)
            size = np.array([group.size], np.int32)
            for row, image in enumerate(views.images.tolist()):
                turned = views.orientations[row]
                for view in range(group.num_views):
                    pixels = resized[row, view]
                    if any(ORIENTATION_STEPS[turned]):
                        pixels = np.ascontiguousarray(orient_pixels(pixels, turned))
                    parameters = views.parameters[row, first + view][None]
                    place = np.array([array[image, view].ctypes.data], np.uint64)
                    self._kernel.crop(pixels, box, parameters, size, place)
            first += group.num_views

    def place(self, crops: Sequence[NDArray[np.uint8]], image: int, out: tuple[Any, ...]) -> None:
        for array, cropped in zip(out, crops, strict=True):
            array[image] = cropped[0]

    def select(self, out: tuple[Any, ...], images: NDArray[np.int64]) -> tuple[CropArray, ...]:
        return tuple(array[images] for array in out)
