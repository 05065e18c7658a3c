"""Drift: change of a feature between its entry into a queue and the present network.

Entries of a queue were computed by the network of earlier steps. The probe keeps some images of the
first batch and encodes them once in the age of the oldest entry. The cosine between two successive
encodings is that between such an entry and its present feature.

The images are encoded with batch norm in evaluation mode, so that a feature does not depend on the
other images of a batch.

Shape letters: P images, B samples of this rank, S pixels, D feature.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.config.parts.queue_config import QueueConfig
from streamssl.devices.host_copy import HostCopy
from streamssl.distributed.collectives import all_gather_rows
from streamssl.modules.losses import at_least_float32

NUM_IMAGES: Final = 16
MIN_STEPS: Final = 10
"""Minimum of steps between two measurements: each costs a forward pass of P images."""

# Above every drift and every limit, and finite: a state may hold no other numbers.
UNMEASURED: Final = 4.0


class DriftProbe(nn.Module):
    """Images, their last encodings, the drift since, and the step at which the queue started.

    Buffers, all in the state dict: `images` (P, 3, S, S); `entries` (P, D) of unit norm; `drift`, 1
    - the mean cosine, `UNMEASURED` before the second measurement; int64 `num_looks`, the number of
    measurements, and `started`, the first step with the queue or -1. All ranks have those of rank
    0.
    """

    images: Tensor
    entries: Tensor
    drift: Tensor
    num_looks: Tensor
    started: Tensor

    def __init__(self, config: QueueConfig, image_size: int, dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("images", torch.zeros(NUM_IMAGES, 3, image_size, image_size))
        self.register_buffer("entries", torch.zeros(NUM_IMAGES, dim))
        self.register_buffer("drift", torch.full((), UNMEASURED))
        self.register_buffer("num_looks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.full((), -1, dtype=torch.int64))
        self._known_looks = HostCopy()
        # Copy of `started` >= 0 on the CPU; None after a measurement or a loaded state.
        self._known_started: bool | None = None

    @torch.no_grad()
    def measure(
        self,
        crops_B3SS: Tensor,
        encode: Callable[[Tensor], Tensor],
        *,
        step: int,
        group: ProcessGroup | None,
    ) -> None:
        """Measure the drift if it is due; the crops are of the first view of this rank's samples.

        `encode` returns features of any norm. Call this before all other work of a step.
        """
        num_rows = len(crops_B3SS) * (1 if group is None else group.size())
        if step % max(MIN_STEPS, -(-self.config.capacity // num_rows)):
            return
        num_looks = self._known_looks.read(self.num_looks)
        is_first = not num_looks
        if is_first:
            self._keep_images(crops_B3SS, group)
        with torch.autocast(self.images.device.type, enabled=False):
            features_PD = F.normalize(at_least_float32(encode(self.images)), dim=1)
        features_PD = all_gather_rows(features_PD, group)[:NUM_IMAGES].to(self.entries.dtype)
        if not is_first:
            self.drift.copy_(1 - (features_PD * self.entries).sum(dim=1).mean())
        self.entries.copy_(features_PD)
        self.num_looks += 1
        self._known_looks.set(num_looks + 1)
        self._known_started = self._known_started or None  # a started queue stays in use

    def has_started(self, step: int, *, is_full: bool) -> bool:
        """Return True if the queue is used in this step, by the rule of `QueueConfig`.

        Call it after `measure` in every step; the first True is stored. Before that, it waits for
        the device once after each measurement, if the rule has a `max_drift`: the sizes of what
        follows depend on it.
        """
        if step < self.config.start_step or not is_full:
            return False
        if self.config.max_drift is None:
            return True
        if self._known_started is None:
            if int(self.started) < 0 and float(self.drift) <= self.config.max_drift:
                self.started.fill_(step)
            self._known_started = int(self.started) >= 0
        return self._known_started

    def readings(self) -> dict[str, Tensor]:
        """Return `queue_drift` of the oldest entries; NaN before the second measurement."""
        nan = torch.full_like(self.drift, float("nan"))
        return {"queue_drift": torch.where(self.drift == UNMEASURED, nan, self.drift)}

    def _keep_images(self, crops_B3SS: Tensor, group: ProcessGroup | None) -> None:
        """Keep the first images of the global batch, in the size of the network's input."""
        crops = all_gather_rows(crops_B3SS[:NUM_IMAGES], group)[:NUM_IMAGES]
        crops = crops[torch.arange(NUM_IMAGES, device=crops.device) % len(crops)]
        side = self.images.shape[-1]
        if crops.shape[-1] != side:
            crops = F.interpolate(crops.float(), (side, side), mode="bilinear", antialias=True)
        self.images.copy_(crops)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        with torch.no_grad():
            self.drift.clamp_(max=UNMEASURED)  # infinite in older checkpoints
        self._known_started = None
        self._known_looks.forget()


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Set networks to evaluation mode inside the block, then restore the mode of each part."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
