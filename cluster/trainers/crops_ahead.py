"""CropsAhead: the crops of the next batches of a rank, made from the images that have arrived.

Cropping whole batches fills a GPU, and the batches stay there. The images are kept until their
batch is used, so ranks of another generation crop their own rows of them.
"""

from collections.abc import Callable
from concurrent.futures import Future

from cluster.trainers.batch_assembly import BatchAssembly
from cluster.trainers.trainer_crops import Crops, TrainerCropper, TrainerCropsConfig

# Batches that are cropped, or being cropped, beside the one that is trained on.
_NUM_AHEAD = 2


class CropsAhead:
    """Crops of the next batches of `assembly`, which holds verified images. The caller locks.

    `on_done` is called by the thread that made some crops, with its error or None.
    """

    def __init__(
        self,
        assembly: BatchAssembly,
        config: TrainerCropsConfig,
        on_done: Callable[[BaseException | None], None],
    ) -> None:
        self._assembly, self._on_done = assembly, on_done
        self._cropper = TrainerCropper(config)
        self._begun: dict[int, tuple[range, Future[Crops]]] = {}

    def begin(self) -> None:
        """Begin to crop batches that are complete, unless their rows of this rank are begun."""
        first = self._assembly.next_step
        self._begun = {step: begun for step, begun in self._begun.items() if step >= first}
        for step, rows, batch in self._assembly.complete_ahead(_NUM_AHEAD):
            if step in self._begun and self._begun[step][0] == rows:
                continue
            (images,) = batch.crops
            mine = slice(rows.start, rows.stop)
            future = self._cropper.submit(images, batch.ids[mine], batch.epochs[mine])
            self._begun[step] = rows, future
            future.add_done_callback(self._done)

    def forget(self) -> None:
        """Drop what has not succeeded, so that `begin` begins it again."""
        self._begun = {
            step: (rows, future)
            for step, (rows, future) in self._begun.items()
            if not future.done() or _succeeded(future)
        }

    def has(self, step: int) -> bool:
        """Return True if this rank's rows of the batch `step` are cropped."""
        return step in self._begun and _succeeded(self._begun[step][1])

    def crops(self, step: int) -> Crops:
        """Return these crops, which must be there."""
        return self._begun[step][1].result()

    def close(self) -> None:
        self._cropper.close()

    def _done(self, future: Future[Crops]) -> None:
        if not future.cancelled():
            self._on_done(future.exception())


def _succeeded(future: Future[Crops]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
