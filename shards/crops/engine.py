"""Interface of an engine: images and parameters in, crops and failures out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from shards.crops.recipe import CropRecipe
from shards.images.image_header import ImageHeader
from shards.records import CropArray, Reason

_BLOCK_BYTES = 1 << 26


class CropFailure(NamedTuple):
    """A failure: the image in row `row` of the batch has no crops."""

    row: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class CroppedImages:
    """The crops of a batch of N images.

    `ok` (N,) bool; `crops` holds for every view group uint8 (ok.sum(), V, S, S, 3) in RGB, a row
    for every image that is ok, in order, where the engine made them; `failures` holds all other
    images.
    """

    crops: tuple[CropArray, ...]
    ok: NDArray[np.bool_]
    failures: list[CropFailure] = field(default_factory=list)

    def on_host(self) -> tuple[NDArray[np.uint8], ...]:
        """Return the crops as arrays of NumPy; those on a GPU are copied."""
        return tuple(map(_on_host, self.crops))


class Engine(Protocol):
    """Executes parameters (N, V, P) of `recipe` on N images; never raises for a bad image.

    Create it in the thread that uses it.
    """

    @property
    def recipe(self) -> CropRecipe: ...

    def crop(
        self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]
    ) -> CroppedImages: ...


def _on_host(array: Any) -> NDArray[np.uint8]:
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def use_one_core() -> None:
    """Limit OpenCV and Pillow to one core, in the whole process.

    Callers parallelise over images, so threads inside the libraries would only compete.
    """
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # Freed blocks of this size return to the system. With smaller blocks, the heap of each thread
    # would keep the memory of its largest image, some hundred megabytes.
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined] # documented
