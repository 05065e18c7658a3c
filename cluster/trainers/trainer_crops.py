"""Images that readers verified become crops on a trainer, beside its training.

The crops are those that a reader with the same engine would have made: they depend on the image,
its sample and its epoch, and on nobody who makes them.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cluster.errors import VerifiedNotCropped
from cluster.protocol.messages import Rows
from cluster.trainers.batch_assembly import Piece
from shards.crops.chunk_cropper import lower_thread_priority
from shards.crops.engine import CropFailure, Engine
from shards.crops.recipe import CropRecipe
from shards.crops.sample_cropper import CropJob, ImageCropper

# One prepares and decodes on the CPU while the other one has the GPU.
_NUM_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CroppingConfig:
    """What a trainer must know to crop; `build_engine` is called once by every thread."""

    recipe: CropRecipe
    seed: int
    build_engine: Callable[[], Engine]
    num_threads: int = _NUM_THREADS

    @classmethod
    def of(cls, job: CropJob) -> "CroppingConfig":
        """As the readers of this job would crop."""
        return cls(recipe=job.recipe, seed=job.seed, build_engine=job.build_engine)


class Cropping:
    """Threads that crop what arrived, in the order in which it did."""

    def __init__(self, config: CroppingConfig) -> None:
        self._config = config
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(config.num_threads, "crop")

    def submit(self, pieces: Sequence[Piece], rows: Rows) -> Future[Rows]:
        """The crops of what a reader gave for these pieces.

        The future raises VerifiedNotCropped, and what kept the engine from being built.
        """
        return self._pool.submit(self._crop, pieces, rows)

    def close(self) -> None:
        """Finish what is under way, and no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _crop(self, pieces: Sequence[Piece], rows: Rows) -> Rows:
        there = [piece for piece in pieces if piece.task not in rows.missing]
        if not there:
            return rows
        ids = np.concatenate([piece.ids for piece in there])
        epochs = np.concatenate([piece.epochs for piece in there])
        (images,) = rows.crops
        cropped = self._cropper().crop(images.tolist(), ids, epochs)
        for failure in cropped.failures:
            raise _not_cropped(failure, ids[failure.row].tolist(), int(epochs[failure.row]))
        return Rows(cropped.crops, rows.missing)

    def _cropper(self) -> ImageCropper:
        """An engine belongs to the thread that uses it."""
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
        f"reader, and a trainer cannot crop it in epoch {epoch} ({failure.reason}: "
        f"{failure.detail}); to leave it out would change the order: give --decode readers, and "
        "look whether all nodes have the same versions of decoders"
    )
