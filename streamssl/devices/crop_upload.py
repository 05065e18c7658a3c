"""Crop upload: the crops of the next batch are copied to the GPU while it computes a step.

Its bytes go into pinned memory and from there, on a stream of their own, into one of two buffers of
the GPU. A buffer is written again when the step that it was filled for has read it, so that at most
one batch is ahead. A host that does not wait for its steps is ahead of the GPU, and has the next
batch in time anyway; one that waits calls `begin` first.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shards.dataloader.tensors import normalise, to_tensors
from shards.records import CropArray

Crops = Sequence[CropArray]

_NUM_BUFFERS = 2


class CropUpload:
    """Crops as model inputs on one device. Used by the thread of the learner.

    On the CPU, and for crops that were made on a GPU, it is `to_tensors`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: list[_Buffer] = []
        self._turn = 0
        self._ahead: tuple[Crops, _Buffer] | None = None

    def to_tensors(self, crops: Crops, dtype: torch.dtype) -> list[Tensor]:
        """Return what `shards.dataloader.tensors.to_tensors` does, bit for bit."""
        if not self._copies(crops):
            return to_tensors(crops, self.device, dtype)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is crops:
            return ahead[1].read(dtype)
        return self._filled(crops).read(dtype)

    def begin(self, crops: Crops) -> None:
        """Begin to copy the crops of the next batch, if none is ahead.

        If `to_tensors` gets others, since the rank has other rows now, they are not used.
        """
        if self._copies(crops) and self._ahead is None:
            self._ahead = crops, self._filled(crops)

    def _copies(self, crops: Crops) -> bool:
        on_host = all(isinstance(array, np.ndarray) for array in crops)
        return on_host and self.device.type == "cuda"

    def _filled(self, crops: Crops) -> "_Buffer":
        buffer = self._next_buffer([array.shape for array in crops])
        buffer.fill(crops)
        return buffer

    def _next_buffer(self, shapes: list[tuple[int, ...]]) -> "_Buffer":
        if not self._buffers or self._buffers[0].shapes != shapes:
            stream = torch.cuda.Stream(self.device)
            self._buffers = [_Buffer(shapes, self.device, stream) for _ in range(_NUM_BUFFERS)]
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        return self._buffers[self._turn]


class _Buffer:
    """Memory of one batch: pinned on the host, and on the GPU."""

    def __init__(
        self, shapes: list[tuple[int, ...]], device: torch.device, stream: torch.cuda.Stream
    ) -> None:
        self.shapes, self._stream = shapes, stream
        self._pinned = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes]
        self._pixels = [torch.empty(shape, dtype=torch.uint8, device=device) for shape in shapes]
        self._copied, self._was_read = torch.cuda.Event(), torch.cuda.Event()
        # The memory may have been another tensor's, which a step under way still reads.
        self._was_read.record()

    def fill(self, crops: Crops) -> None:
        """Begin to copy crops to the GPU, once the step before has read this buffer.

        The host waits only if the last copy from this pinned memory has not ended: then it is
        several steps ahead.
        """
        self._copied.synchronize()
        for pinned, array in zip(self._pinned, crops, strict=True):
            np.copyto(pinned.numpy(), np.asarray(array))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._was_read)
            for pixels, pinned in zip(self._pixels, self._pinned, strict=True):
                pixels.copy_(pinned, non_blocking=True)
                pixels.record_stream(self._stream)
            self._copied.record()

    def read(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the normalised crops, in the order of the present stream."""
        stream = torch.cuda.current_stream(self._pixels[0].device)
        stream.wait_event(self._copied)
        views = [normalise(pixels, dtype) for pixels in self._pixels]
        self._was_read.record(stream)
        return views
