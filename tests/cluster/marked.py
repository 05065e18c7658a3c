"""An engine with faults that marked images trigger, and shards with such images.

The engine runs in the reader processes, so the faults are those of a real reader.
"""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CroppedImages, Engine
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.crops.sample_cropper import CropJob
from shards.images.image_header import ImageHeader
from shards.records import Turn
from shards.samples.admission_config import AdmissionConfig
from shards.samples.synthetic_images import encode_jpeg, make_image
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.order import Order, OrderConfig
from tests.tars import make_tar

RECIPE = CropRecipe((ViewGroup(num_views=2, size=8, scale=(0.5, 1.0)),))
# The side of an image in pixels is its mark.
PLAIN, DIES, DIES_ONCE, FAILS, SLEEPS, KILLS_READER = 32, 41, 42, 43, 44, 45
_CHUNK_BYTES = 1 << 20


class MarkedEngine:
    """Crops like the native engine, unless an image has a mark."""

    def __init__(self, recipe: CropRecipe, once: Path) -> None:
        self.recipe, self._once = recipe, once
        self._engine = NativeEngine(recipe)

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        sides = {image.height for image in images}
        if DIES in sides:
            ctypes.string_at(0)
        if KILLS_READER in sides:  # also in isolation, where the reader is the parent
            parent = multiprocessing.parent_process()
            os.kill(os.getpid() if parent is None else int(parent.pid or 0), signal.SIGKILL)
        if DIES_ONCE in sides and not self._once.exists():
            self._once.touch()
            os._exit(1)
        if FAILS in sides:
            raise ValueError("a bug of ours")
        if SLEEPS in sides:
            time.sleep(60)
        return self._engine.crop(images, parameters)


def build_marked(recipe: CropRecipe, once: Path) -> Engine:
    return MarkedEngine(recipe, once)


def build_none(recipe: CropRecipe) -> Engine:
    raise RuntimeError("this machine has no such engine")


class MarkedShards:
    """Shards of one chunk each: plain ones, and one for every mark."""

    def __init__(self, folder: Path, num_plain: int, marks: dict[str, int]) -> None:
        self.folder = folder
        folder.mkdir()
        for number in range(num_plain):
            self._write(f"plain{number}", [PLAIN] * (5 + number))
        for name, mark in marks.items():
            self._write(name, [PLAIN, mark, PLAIN])
        self.manifest: Manifest = open_manifest(str(folder), RangeReader())
        order = OrderConfig(seed=0, chunk_bytes=_CHUNK_BYTES, chunks_per_block=1)
        self._order = Order(self.manifest.shards, self.manifest.digest, order)

    def _write(self, name: str, sides: list[int]) -> None:
        members = [(f"{place}.jpg", _draw(place, side)) for place, side in enumerate(sides)]
        self.path(name).write_bytes(make_tar(members))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.tar"

    def turn(self, name: str, epoch: int = 0) -> Turn:
        uris = [Path(shard.uri).stem for shard in self.manifest.shards]
        return Turn(self._order.chunk(uris.index(name)), epoch)

    def job(self, **changes: Any) -> CropJob:
        build = partial(build_marked, RECIPE, self.folder.with_name("once"))
        fields = {"admission": AdmissionConfig(), "build_engine": build} | changes
        return CropJob(recipe=RECIPE, seed=0, **fields)


def _draw(index: int, side: int) -> bytes:
    return encode_jpeg(make_image(0, index, 0, side))
