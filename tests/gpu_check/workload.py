"""Workloads of the check: images, batches and settings; tiny ones for a CPU."""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from shards.crops.recipe import CropRecipe, cifar, draw, swav
from shards.images.image_header import ImageHeader, read_image_header
from shards.samples.synthetic_images import encode_jpeg, make_image

# Web images have about this side.
SIDE, TINY_SIDE = 384, 48
_NUM_CLASSES = 10


def crop_recipe(device: str) -> CropRecipe:
    """Return SwAV's 2x224 + 6x96, or its like for tiny images."""
    if device == "cuda":
        return swav()
    return swav(counts=(2, 1), sizes=(24, 16))


def made_images(num_images: int, side: int) -> list[ImageHeader]:
    """Return JPEGs, a few different ones again and again, since each takes milliseconds to make."""
    different = [
        read_image_header(encode_jpeg(make_image(0, index, index % _NUM_CLASSES, side)))
        for index in range(min(num_images, 32))
    ]
    return [different[index % len(different)] for index in range(num_images)]


def drawn(recipe: CropRecipe, images: list[ImageHeader]) -> NDArray[np.float32]:
    """Return parameters of images at offsets of their own."""
    ids = np.zeros((len(images), 2), np.int64)
    ids[:, 1] = 512 * np.arange(len(images))
    sizes = [(image.height, image.width) for image in images]
    return draw(recipe, 0, np.zeros(len(images)), ids, sizes)


def seconds_per_call(call: Callable[[], object], device: str, times: int) -> float:
    """Return the median seconds of a call, after one that is not counted."""
    call()
    found = []
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return median(found)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def gigabytes(device: str) -> float | None:
    """Return the most memory that torch has held on the GPU since the last call."""
    if device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


def tiny_crops() -> CropRecipe:
    """Return crops of a network that a CPU trains in milliseconds."""
    recipe = cifar()
    return CropRecipe(tuple(replace(group, size=16) for group in recipe.groups))
