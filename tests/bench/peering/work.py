"""The work of every loader on an image, so that loaders are compared, not decoders."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 224
SHUFFLE_BUFFER = 1000
Mode = Literal["crop", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Task of a loader. `folder` holds plain tars, `converted` is for the loader's own format.

    `ordered`: request a reproducible order, if the library has such an option.
    """

    folder: str
    converted: str
    mode: Mode
    workers: int
    batch_size: int = 64
    seed: int = 7
    ordered: bool = False


class Loader(Protocol):
    """One loader, created from a `Job`. `state` and `load` are its documented way to resume."""

    def epoch(self) -> Iterator[tuple[list[str], Any]]:
        """Yield the batches of one epoch: names of samples, and results."""
        ...

    def state(self) -> Any:
        """Return the state after a batch, as JSON; None if the library has none."""
        ...

    def load(self, state: Any) -> None:
        """Resume from a state; called before `epoch`."""
        ...


def prepare(data: bytes, mode: Mode) -> NDArray[np.uint8] | bytes:
    """Return a decoded crop (224, 224, 3) uint8 RGB, or the unchanged bytes."""
    return crop(data) if mode == "crop" else data


def crop(data: bytes) -> NDArray[np.uint8]:
    """Decode, crop a random box like torchvision's RandomResizedCrop, resize, flip."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    top, left, height, width = _box(*pixels.shape[:2])
    box = pixels[top : top + height, left : left + width]
    way = cv2.INTER_AREA if min(height, width) > SIDE else cv2.INTER_LINEAR
    resized = cv2.resize(box, (SIDE, SIDE), interpolation=way)
    return cv2.flip(resized, 1) if random.random() < 0.5 else resized


def _box(height: int, width: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def use_one_core(_: int = 0) -> None:
    """Limit OpenCV to one core; every worker calls it."""
    cv2.setNumThreads(1)


def collate(samples: list[tuple[str, Any]]) -> tuple[list[str], Any]:
    """Return samples as a batch: crops as one array, bytes as a list."""
    names = [name for name, _ in samples]
    made = [what for _, what in samples]
    return names, np.stack(made) if isinstance(made[0], np.ndarray) else made
