"""Feature queue: the last features of the run as one ring, in global sample order.

Every rank holds the whole ring, so it is saved unchanged, survives the loss of any rank, and fits
any number of ranks. It is small: 3,840 rows of 128 numbers are 2 MB. `share` distributes the rows
over ranks if each row needs to be processed only once.

Shape letters: L capacity, N rows of a push, D feature, W ranks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.devices.host_copy import HostCopy
from streamssl.distributed.collectives import rank, world_size


class FeatureQueue(nn.Module):
    """A ring of `capacity` rows of `dim` numbers, float32, each with the step of its push.

    Buffers, all in the state dict: `rows` (L, D) float32; `steps` (L,) int64, -1 in empty slots;
    `position` and `num_filled` int64 scalars. Slots fill from 0 and then wrap.
    No method waits for the device, besides the first after a state was loaded. Steps of pushes must
    not fall.
    """

    rows: Tensor
    steps: Tensor
    position: Tensor
    num_filled: Tensor

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("rows", torch.zeros(capacity, dim))
        self.register_buffer("steps", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_filled", torch.zeros((), dtype=torch.int64))
        self._filled = HostCopy()

    @torch.no_grad()
    def push(self, rows_ND: Tensor, step: int) -> None:
        """Write rows in their order; in a full ring they replace the oldest."""
        num_rows = len(rows_ND)
        if num_rows > self.capacity:
            raise ConfigError(
                f"a queue of capacity {self.capacity} received a global batch of {num_rows} rows; "
                "the capacity must be at least one global batch; raise it to a multiple of that"
            )
        slots_N = (self.position + torch.arange(num_rows, device=self.rows.device)) % self.capacity
        self.rows[slots_N] = rows_ND.detach().to(self.rows.dtype)
        self.steps[slots_N] = step
        self.position.copy_((self.position + num_rows) % self.capacity)
        filled = min(self._filled.read(self.num_filled) + num_rows, self.capacity)
        self.num_filled.fill_(filled)
        self._filled.set(filled)

    @torch.no_grad()
    def fill_with_noise(self, generator: torch.Generator) -> None:
        """Fill with random directions, older than every step, as MoCo starts."""
        noise_LD = torch.randn(self.rows.shape, generator=generator)
        self.rows.copy_(F.normalize(noise_LD, dim=1))
        self.steps.fill_(-1)
        self.position.zero_()
        self.num_filled.fill_(self.capacity)
        self._filled.set(self.capacity)

    @property
    def is_full(self) -> bool:
        """Return True if every slot holds a feature."""
        return self._filled.read(self.num_filled) == self.capacity

    def newest_first(self) -> Tensor:
        """Return a copy of the filled rows, newest first, (num_filled, D)."""
        num_filled = self._filled.read(self.num_filled)
        ages_N = torch.arange(1, num_filled + 1, device=self.rows.device)
        return self.rows[(self.position - ages_N) % self.capacity]

    def filled(self) -> Tensor:
        """Return a copy of the filled rows, oldest first, (num_filled, D)."""
        return self.newest_first().flip(0)

    def share(self, num_rows: int, group: ProcessGroup | None) -> Tensor:
        """Return this rank's part of a full queue, newest first; all parts together are all rows.

        If every push was a global batch of W * `num_rows` rows, newest row first, and the capacity
        is a multiple of that, these are the rows that this rank computed.
        """
        rows_LD = self.newest_first()
        num_ranks = world_size(group)
        if num_ranks == 1:
            return rows_LD
        if self.capacity % (num_ranks * num_rows):
            return rows_LD[rank(group) :: num_ranks]
        by_rank = rows_LD.view(-1, num_ranks, num_rows, rows_LD.shape[1])
        return by_rank[:, rank(group)].reshape(-1, rows_LD.shape[1])

    def readings(self, step: int) -> dict[str, Tensor]:
        """Return `queue_fill` in [0, 1], and ages in steps: median and maximum (NaN if empty)."""
        slots_L = torch.arange(self.capacity, device=self.rows.device)
        is_filled_L = slots_L < self.num_filled
        ages_L = torch.where(is_filled_L, step - self.steps, -1).float()
        nan, oldest = ages_L.new_full((), float("nan")), ages_L.max()
        # The ring is sorted by age, newest before `position`, so the median has a known place.
        # `nanmedian` and an index without a dimension wait for the device.
        middle = (self.num_filled - 1).clamp(min=0) // 2
        median = ages_L.gather(0, ((self.position - 1 - middle) % self.capacity).view(1))[0]
        return {
            "queue_fill": self.num_filled / self.capacity,
            "queue_age_p50": torch.where(oldest < 0, nan, median),
            "queue_age_max": torch.where(oldest < 0, nan, oldest),
        }

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._filled.forget()
