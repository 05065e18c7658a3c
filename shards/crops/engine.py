"""What an engine is: images and parameters in, crops and failures out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from shards.crops.recipe import CropRecipe
from shards.images.image_header import ImageHeader
from shards.records import Reason

_BLOCK_BYTES = 1 << 26


class CropFailure(NamedTuple):
    """The image in row `row` of the batch gave no crops."""

    row: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class CroppedImages:
    """The crops of a batch of N images.

    `ok` (N,) bool; `crops` holds for every view group uint8 (ok.sum(), V, S, S, 3) in RGB, a row
    for every image that is ok, in order; `failures` names all the others.
    """

    crops: tuple[NDArray[np.uint8], ...]
    ok: NDArray[np.bool_]
    failures: list[CropFailure] = field(default_factory=list)


class Engine(Protocol):
    """Executes parameters (N, V, P) of `recipe` on N images; never raises for a bad image."""

    @property
    def recipe(self) -> CropRecipe: ...

    def crop(
        self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]
    ) -> CroppedImages: ...


def use_one_core() -> None:
    """Keep the libraries that execute crops to one core; call it in the thread that will crop.

    Work is spread over images by whoever calls, so threads inside the libraries would only wait
    for one another. The settings of OpenCV and Pillow are those of the process, torch's of the
    calling thread: a trainer's thread in the same process keeps all its cores.
    """
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # Blocks of this size go back to the system when they are freed. Of smaller ones, the heap of a
    # thread keeps what the largest image took, some hundred megabytes.
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined] # documented
