"""The work that every loader does with an image, so that loaders are compared and not decoders."""

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
    """What a loader is asked for. `folder` holds plain tars, `converted` is for its own format.

    `ordered`: where a library must be asked for the same order every time, it is.
    """

    folder: str
    converted: str
    mode: Mode
    workers: int
    batch_size: int = 64
    seed: int = 7
    ordered: bool = False


class Loader(Protocol):
    """One loader, made from a `Job`. `state` and `load` are its own documented means to resume."""

    def epoch(self) -> Iterator[tuple[list[str], Any]]:
        """Batches of one epoch: the names of the samples, and what was made of them."""
        ...

    def state(self) -> Any:
        """What has to be saved after a batch, as JSON; None where the library has nothing."""
        ...

    def load(self, state: Any) -> None:
        """Go on from there; called before `epoch`."""
        ...


def prepare(data: bytes, mode: Mode) -> NDArray[np.uint8] | bytes:
    """A decoded crop (224, 224, 3) uint8 RGB; or the bytes as they are."""
    return crop(data) if mode == "crop" else data


def crop(data: bytes) -> NDArray[np.uint8]:
    """Decode, cut out a random box as torchvision's RandomResizedCrop, resize, maybe mirror."""
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
    """Called in every worker: a worker is one core, whatever OpenCV thinks."""
    cv2.setNumThreads(1)


def collate(samples: list[tuple[str, Any]]) -> tuple[list[str], Any]:
    """Samples as a batch: crops become one array, bytes stay a list."""
    names = [name for name, _ in samples]
    made = [what for _, what in samples]
    return names, np.stack(made) if isinstance(made[0], np.ndarray) else made
