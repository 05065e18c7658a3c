"""TrainerCropper: crops verified images where they are trained on, in threads beside the training.

The crops are those of a reader with the same engine: they depend on the image, its sample and its
epoch only. An engine on a GPU leaves them there.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.errors import VerifiedNotCropped
from shards.crops.chunk_cropper import lower_thread_priority
from shards.crops.engine import CropFailure, Engine
from shards.crops.recipe import CropRecipe
from shards.crops.sample_cropper import CropJob, ImageCropper
from shards.errors import StreamStopped
from shards.records import CropArray, CropBatch

# One prepares and decodes on the CPU while the other one has the GPU.
_NUM_THREADS = 2

Crops = tuple[CropArray, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerCropsConfig:
    """Settings of the crops; every thread calls `build_engine` once, and crops whole batches."""

    recipe: CropRecipe
    seed: int
    build_engine: Callable[[], Engine]
    num_threads: int = _NUM_THREADS

    @classmethod
    def of(cls, job: CropJob) -> "TrainerCropsConfig":
        """Return the settings with which readers of this job would crop."""
        return cls(recipe=job.recipe, seed=job.seed, build_engine=job.build_engine)


class TrainerCropper:
    """Threads that crop images in the order of their arrival."""

    def __init__(self, config: TrainerCropsConfig) -> None:
        self._config = config
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(config.num_threads, "crop")

    def submit(
        self, images: CropArray, ids: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> Future[Crops]:
        """Crop N verified images: an array (N,) of `ImageHeader`, with `ids` (N, 2), `epochs` (N,).

        The future raises VerifiedNotCropped, and errors of `build_engine`.
        """
        return self._pool.submit(self._crop, images, ids, epochs)

    def close(self) -> None:
        """Finish the crops under way and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _crop(self, images: CropArray, ids: NDArray[np.int64], epochs: NDArray[np.int64]) -> Crops:
        verified = [images[row] for row in range(len(images))]
        cropped = self._image_cropper().crop(verified, ids, epochs)
        for failure in cropped.failures:
            raise _not_cropped(failure, ids[failure.row].tolist(), int(epochs[failure.row]))
        return cropped.crops

    def _image_cropper(self) -> ImageCropper:
        """Return the cropper of this thread: an engine belongs to the thread that uses it."""
        cropper: ImageCropper | None = getattr(self._local, "cropper", None)
        if cropper is None:
            lower_thread_priority()
            cropper = ImageCropper(self._config.build_engine(), self._config.seed)
            self._local.cropper = cropper
        return cropper


class CroppedBatches:
    """Iterator over batches of verified images, as batches of crops: where a process trains alone.

    While one batch is used, the next one is cropped. Use as a context. Raises the errors of
    `batches` after the batches before it, and StreamStopped at once.
    """

    def __init__(self, batches: Iterator[CropBatch], config: TrainerCropsConfig) -> None:
        self._batches = batches
        self._cropper = TrainerCropper(config)
        self._ahead: deque[tuple[CropBatch, Future[Crops]]] = deque()
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[CropBatch]:
        return self

    def __next__(self) -> CropBatch:
        while self._error is None and len(self._ahead) < 2:
            self._begin_next()
        if not self._ahead:
            assert self._error is not None
            raise self._error
        batch, crops = self._ahead.popleft()
        return replace(batch, crops=crops.result())

    def __enter__(self) -> "CroppedBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self._cropper.close()

    def _begin_next(self) -> None:
        try:
            batch = next(self._batches)
        except StreamStopped:
            raise
        except Exception as error:  # the end of the stream, too
            self._error = error
            return
        (images,) = batch.crops
        self._ahead.append((batch, self._cropper.submit(images, batch.ids, batch.epochs)))


def _not_cropped(failure: CropFailure, sample: list[int], epoch: int) -> VerifiedNotCropped:
    shard, offset = sample
    return VerifiedNotCropped(
        f"the sample at byte {offset} of shard {shard} of manifest.parquet was verified by a "
        f"reader, but a trainer cannot crop it in epoch {epoch} ({failure.reason}: "
        f"{failure.detail}); leaving it out would change the order: give --decode readers, and "
        "check that all nodes have the same versions of decoders"
    )
