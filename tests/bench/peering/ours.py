"""Common parts of the loaders of this project: the shared work as an engine, epochs of names."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CroppedImages
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.dataloader.open_data import ReadConfig
from shards.images.image_header import ImageHeader
from shards.stream.stream_config import StreamConfig
from tests.bench.peering.work import SIDE, Job, crop

PACKAGE = "streamssl"
RESUME = "the state that comes with every batch: a cursor under 2 kB"
RECIPE = CropRecipe(
    (ViewGroup(num_views=1, size=SIDE, scale=(0.08, 1.0), flip=0.5, grey_probability=0.0),)
)


class SharedWork:
    """`work.crop` as an engine; it draws its own boxes, as for every other loader."""

    def __init__(self, recipe: CropRecipe) -> None:
        self.recipe = recipe

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:  # noqa: ARG002
        crops = np.empty((len(images), 1, SIDE, SIDE, 3), np.uint8)
        for row, image in enumerate(images):
            crops[row, 0] = crop(image.data)
        return CroppedImages((crops,), np.ones(len(images), np.bool_))


def config_of(job: Job) -> ReadConfig:
    """Return default settings, with the values that all peers get."""
    stream = StreamConfig(batch_size=job.batch_size)
    return ReadConfig(seed=job.seed, stream=stream, num_readers=job.workers)


Batches = Iterator[tuple[list[str], list[int], Any]]


class Ours:
    """One epoch, or an endless stream, of `batches`."""

    def batches(self) -> Batches:
        """Yield names, epochs and content of every batch, from the current position."""
        raise NotImplementedError

    def endless(self) -> Iterator[tuple[list[str], Any]]:
        """Yield batches across epochs."""
        return ((names, made) for names, _, made in self.batches())

    def epoch(self) -> Iterator[tuple[list[str], Any]]:
        """Yield batches until the next epoch begins."""
        first: int | None = None
        for names, epochs, made in self.batches():
            first = epochs[0] if first is None else first
            kept = [name for name, epoch in zip(names, epochs, strict=True) if epoch == first]
            if kept:
                yield kept, made
            if len(kept) < len(names):
                return


def described(batches: Iterator[Any]) -> Batches:
    """Yield batches of crops with the names of their samples."""
    for batch in batches:
        names = [f"{int(shard)}:{int(offset)}" for shard, offset in batch.ids]
        yield names, [int(epoch) for epoch in batch.epochs], batch
