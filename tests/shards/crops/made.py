"""Images made by formula, and real ones of `shared/data` if it exists."""

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.crops.recipe import CropRecipe, draw
from shards.images.image_header import ImageHeader

DATA = Path(__file__).parents[4] / "shared" / "data"


def made_pixels(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return colour waves, boxes with hard edges and some noise (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    pixels = np.empty((height, width, 3))
    for channel in range(3):
        fy, fx, phase = rng.uniform(1, 9, 3)
        pixels[..., channel] = 127 + 100 * np.sin(2 * np.pi * (fy * y + fx * x) + phase)
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        box = pixels[top : top + height // 4, left : left + width // 4]
        box[:] = rng.uniform(0, 255, 3)
    pixels += rng.normal(0, 6, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], format_: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_, **options)
    return file.getvalue()


def drawn(recipe: CropRecipe, images: list[ImageHeader], seed: int = 0) -> NDArray[np.float32]:
    """Return parameters of these images, with offsets 512 bytes apart in shard 0."""
    ids = np.zeros((len(images), 2), np.int64)
    ids[:, 1] = 512 * np.arange(len(images))
    sizes = [(image.height, image.width) for image in images]
    return draw(recipe, seed, np.zeros(len(images)), ids, sizes)


def shared_files(name: str, max_files: int | None = None) -> dict[str, bytes]:
    """Return the first files of an archive of real images; skip the test without it."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data")
    with tarfile.open(path) as archive:
        members = itertools.islice((member for member in archive if member.isfile()), max_files)
        return {Path(member.name).name: archive.extractfile(member).read() for member in members}
