"""Drift: how far a feature is from what the network would make of its image by now.

What waits in a queue was made by the network of some steps ago. A few images of the first batch
are kept, and encoded again each time that the oldest entry of the queue has become as old as it
gets; the cosine with what they were encoded to before is that of such an entry with itself.

They are encoded alone and with batch norm as in evaluation, both times: companions would change
them, too, and those of a batch are never the same again.

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
from streamssl.distributed.collectives import all_gather_rows
from streamssl.modules.losses import at_least_float32

NUM_IMAGES: Final = 16
MIN_STEPS: Final = 10
"""Steps between two looks at least: a look costs a forward pass of P images."""


class DriftProbe(nn.Module):
    """Images, what they were last encoded to, the drift since, and when the queue started.

    Buffers, all in the state dict: `images` (P, 3, S, S), `entries` (P, D) unit norm, `drift`,
    which is 1 - the mean cosine and infinite before the second look, and int64 `num_looks` and
    `started`, the first step with the queue or -1. Every rank has the same, those of rank 0.
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
        self.register_buffer("drift", torch.full((), float("inf")))
        self.register_buffer("num_looks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.full((), -1, dtype=torch.int64))
        # What the device would say; None after a look, and after another state was loaded.
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
        """Look again if it is time; the crops are of the first view of this rank's samples.

        `encode` gives features of any norm. Call it before anything of the step is computed.
        """
        num_rows = len(crops_B3SS) * (1 if group is None else group.size())
        if step % max(MIN_STEPS, -(-self.config.capacity // num_rows)):
            return
        is_first = not int(self.num_looks)
        if is_first:
            self._take(crops_B3SS, group)
        with torch.autocast(self.images.device.type, enabled=False):
            features_PD = F.normalize(at_least_float32(encode(self.images)), dim=1)
        features_PD = all_gather_rows(features_PD, group)[:NUM_IMAGES].to(self.entries.dtype)
        if not is_first:
            self.drift.copy_(1 - (features_PD * self.entries).sum(dim=1).mean())
        self.entries.copy_(features_PD)
        self.num_looks += 1
        self._known_started = self._known_started or None  # a queue that has started goes on

    def has_started(self, step: int, *, is_full: bool) -> bool:
        """Whether the queue is used in this step, by the rule of `QueueConfig`.

        Asked after `look` in every step; a yes is remembered.
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
        """`queue_drift` of an entry that is as old as the oldest; NaN before the second look."""
        nothing = torch.full_like(self.drift, float("nan"))
        return {"queue_drift": torch.where(self.drift.isinf(), nothing, self.drift)}

    def _take(self, crops_B3SS: Tensor, group: ProcessGroup | None) -> None:
        """Keep the first images of the global batch, in the size the network was made for."""
        crops = all_gather_rows(crops_B3SS[:NUM_IMAGES], group)[:NUM_IMAGES]
        crops = crops[torch.arange(NUM_IMAGES, device=crops.device) % len(crops)]
        side = self.images.shape[-1]
        if crops.shape[-1] != side:
            crops = F.interpolate(crops.float(), (side, side), mode="bilinear", antialias=True)
        self.images.copy_(crops)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_started = None


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks as in evaluation, then each part in its mode of before."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
