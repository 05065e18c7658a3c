"""TrainerCropper: crops verified images on a trainer, in threads beside its training.

The crops are those of a reader with the same engine: they depend on the image, its sample and its
epoch only.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cluster.errors import VerifiedNotCropped
from cluster.protocol.messages import Rows
from cluster.trainers.batch_assembly import TaskRows
from shards.crops.chunk_cropper import lower_thread_priority
from shards.crops.engine import CropFailure, Engine
from shards.crops.recipe import CropRecipe
from shards.crops.sample_cropper import CropJob, ImageCropper

# One prepares and decodes on the CPU while the other one has the GPU.
_NUM_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerCropsConfig:
    """Settings of the crops; every thread calls `build_engine` once."""

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

    def submit(self, parts: Sequence[TaskRows], rows: Rows) -> Future[Rows]:
        """Crop the answer of a reader to a request for `parts`.

        The future raises VerifiedNotCropped, and errors of `build_engine`.
        """
        return self._pool.submit(self._crop, parts, rows)

    def close(self) -> None:
        """Finish the crops under way and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _crop(self, parts: Sequence[TaskRows], rows: Rows) -> Rows:
        received = [part for part in parts if part.task not in rows.missing]
        if not received:
            return rows
        ids = np.concatenate([part.ids for part in received])
        epochs = np.concatenate([part.epochs for part in received])
        (images,) = rows.crops
        assert isinstance(images, np.ndarray), "readers that only verify send one array"
        cropped = self._image_cropper().crop(images.tolist(), ids, epochs)
        for failure in cropped.failures:
            raise _not_cropped(failure, ids[failure.row].tolist(), int(epochs[failure.row]))
        return Rows(cropped.crops, rows.missing)

    def _image_cropper(self) -> ImageCropper:
        """Return the cropper of this thread: an engine belongs to the thread that uses it."""
        cropper: ImageCropper | None = getattr(self._local, "cropper", None)
        if cropper is None:
            lower_thread_priority()
            cropper = ImageCropper(self._config.build_engine(), self._config.seed)
            self._local.cropper = cropper
        return cropper


def _not_cropped(failure: CropFailure, sample: list[int], epoch: int) -> VerifiedNotCropped:
    shard, offset = sample
    return VerifiedNotCropped(
        f"the sample at byte {offset} of shard {shard} of manifest.parquet was verified by a "
        f"reader, but a trainer cannot crop it in epoch {epoch} ({failure.reason}: "
        f"{failure.detail}); leaving it out would change the order: give --decode readers, and "
        "check that all nodes have the same versions of decoders"
    )
