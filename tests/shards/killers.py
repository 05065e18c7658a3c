"""An engine that really crashes its process at marked images, as a decoder at hostile ones.

Child processes and readers import this file by name.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CropFailure, CroppedImages, Engine
from shards.crops.recipe import CropRecipe, ViewGroup, pixel_boxes
from shards.crops.sample_cropper import CropJob
from shards.images.decode import decode
from shards.images.image_header import ImageHeader
from shards.samples.admission_config import AdmissionConfig
from tests.noise import noise
from tests.tars import make_tar

RECIPE = CropRecipe((ViewGroup(num_views=2, size=8, scale=(0.5, 1.0)),))


def _sleep_with_the_lock() -> None:
    """Sleep with the interpreter lock, as C code in an endless loop."""
    ctypes.PyDLL(None).sleep(600)


def _eat_memory() -> None:
    kept = [np.empty(1 << 28, np.uint8) for _ in range(64)]
    raise AssertionError(f"{len(kept)} quarters of a GiB were allowed")


def _fail() -> None:
    raise ValueError("a bug of the engine")


# The side of an image in pixels is its mark. Other sides are plain images.
CRASHES: dict[int, Callable[[], object]] = {
    41: lambda: signal.raise_signal(signal.SIGSEGV),
    42: lambda: ctypes.string_at(0),
    43: os.abort,
    44: lambda: os._exit(3),
    45: _sleep_with_the_lock,
    46: lambda: time.sleep(600),
    47: _eat_memory,
    48: _fail,
}
SEGFAULT, NULL, ABORT, EXIT, HANG, SLEEP, EAT, FAIL = CRASHES


class PlainEngine:
    """Crops and resizes with few imports: child processes start fast."""

    def __init__(self, recipe: CropRecipe) -> None:
        self.recipe = recipe

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        (group,) = self.recipe.groups
        shape = (len(images), group.num_views, group.size, group.size, 3)
        crops = np.zeros(shape, np.uint8)
        sizes = np.array([(image.height, image.width) for image in images]).reshape(-1, 2)
        boxes = pixel_boxes(parameters, sizes)
        for row, image in enumerate(images):
            pixels = decode(image)
            for view, (y0, x0, y1, x1) in enumerate(boxes[row]):
                crops[row, view] = cv2.resize(pixels[y0:y1, x0:x1], shape[2:4])
        return CroppedImages((crops,), np.ones(len(images), np.bool_))


class KillerEngine(PlainEngine):
    """Crashes at marked images."""

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        for image in images:
            CRASHES.get(image.height, bool)()
        return super().crop(images, parameters)


def build_killer(recipe: CropRecipe) -> Engine:
    return KillerEngine(recipe)


class RefusingEngine(PlainEngine):
    """Rejects marked images without a crash: the reference of a run with crashes."""

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        ok = np.array([image.height not in CRASHES for image in images], dtype=np.bool_)
        plain = [image for image in images if image.height not in CRASHES]
        failures = [
            CropFailure(int(row), "kills_decoder", "refused") for row in np.flatnonzero(~ok)
        ]
        return CroppedImages(super().crop(plain, parameters[ok]).crops, ok, failures)


def build_refusing(recipe: CropRecipe) -> Engine:
    return RefusingEngine(recipe)


def killer_job(**changes: object) -> CropJob:
    """Return a job of `KillerEngine`."""
    fields: dict[str, object] = {
        "recipe": RECIPE,
        "seed": 3,
        "admission": AdmissionConfig(),
        "build_engine": partial(build_killer, RECIPE),
    }
    return CropJob(**(fields | changes))  # type: ignore[arg-type]


def png(seed: int, side: int = 24) -> bytes:
    """Return an image of noise with this side."""
    return noise(side, side, seed=seed)


def tar_of(images: Sequence[bytes]) -> bytes:
    """Return a shard with one image per sample."""
    return make_tar([(f"{number:03d}.png", data) for number, data in enumerate(images)])
