"""Sample memory: features of the last samples by key, and their labels.

The memory is one ring in global sample order, the same on every rank, so it is saved unchanged and
fits any number of ranks. A sample has the same key whenever it returns.

Shape letters: A banks (features of A crops of a sample), L capacity, N filled rows, G samples of
the global batch, B samples of this rank, H heads, D feature.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from shards.errors import ConfigError
from streamssl.devices.host_copy import HostCopy
from streamssl.distributed.collectives import all_reduce_sum, rank, world_size

# Label of a sample without one; `cross_entropy` ignores it.
NO_LABEL = -100
# Header offsets stay below a terabyte, and shards below eight million.
_OFFSET_BITS = 40


def sample_keys(ids_B2: Tensor) -> Tensor:
    """Return one number (B,) for each sample, from its shard row and header offset."""
    return (ids_B2[:, 0] << _OFFSET_BITS) | ids_B2[:, 1]


class SampleMemory(nn.Module):
    """A ring of `capacity` samples with `num_banks` features each; new ones replace the oldest.

    Buffers, all in the state dict: `keys` (L,) int64, -1 in empty slots; `rows` (A, L, D)
    float32; `position` and `num_filled` int64 scalars. Slots fill from 0.
    """

    keys: Tensor
    rows: Tensor
    position: Tensor
    num_filled: Tensor

    def __init__(self, capacity: int, dim: int, num_banks: int = 1) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("keys", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("rows", torch.zeros(num_banks, capacity, dim))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_filled", torch.zeros((), dtype=torch.int64))
        self._filled = HostCopy()

    @torch.no_grad()
    def push(self, keys_G: Tensor, rows_AGD: Tensor) -> Tensor:
        """Write samples in their order; return their slots (G,)."""
        num = len(keys_G)
        if num > self.capacity:
            raise ConfigError(
                f"a memory of {self.capacity} samples received a global batch of {num}; it must "
                "hold at least one global batch; raise the memory"
            )
        places_G = torch.arange(num, device=self.rows.device)
        slots_G = (self.position + places_G) % self.capacity
        self.keys[slots_G] = keys_G
        self.rows[:, slots_G] = rows_AGD.detach().to(self.rows.dtype)
        self.position.copy_((self.position + num) % self.capacity)
        filled = min(self._filled.read(self.num_filled) + num, self.capacity)
        self.num_filled.fill_(filled)
        self._filled.set(filled)
        return slots_G

    def oldest_first(self) -> Tensor:
        """Return the filled slots (N,) in the order in which they were written."""
        num_filled = self._filled.read(self.num_filled)
        ages_N = torch.arange(num_filled, 0, -1, device=self.rows.device)
        return (self.position - ages_N) % self.capacity

    def find(self, keys_B: Tensor) -> Tensor:
        """Return the slot (B,) of each key, the newest of several, or -1."""
        slots_N = self.oldest_first()
        keys_N = self.keys[slots_N]
        order_N = keys_N.argsort(stable=True)
        return _find_last(keys_N[order_N], slots_N[order_N], keys_B)

    @property
    def fill(self) -> Tensor:
        """Share of slots that are filled."""
        return self.num_filled / self.capacity

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._filled.forget()


class LabelTable(nn.Module):
    """Labels of samples by key, H for each, of the last labelling.

    Buffers: `keys` (L,) int64 ascending, padded with the largest number; `labels` (H, L) int64.
    """

    keys: Tensor
    labels: Tensor

    def __init__(self, capacity: int, num_heads: int) -> None:
        super().__init__()
        unknown = torch.full((capacity,), torch.iinfo(torch.int64).max, dtype=torch.int64)
        self.register_buffer("keys", unknown)
        none_HL = torch.full((num_heads, capacity), NO_LABEL, dtype=torch.int64)
        self.register_buffer("labels", none_HL)

    @torch.no_grad()
    def replace(self, keys_N: Tensor, labels_HN: Tensor) -> None:
        """Replace all labels; of equal keys the last one counts."""
        self.keys.fill_(torch.iinfo(torch.int64).max)
        self.labels.fill_(NO_LABEL)
        order_N = keys_N.argsort(stable=True)
        self.keys[: len(keys_N)] = keys_N[order_N]
        self.labels[:, : len(keys_N)] = labels_HN[:, order_N]

    def look_up(self, keys_B: Tensor) -> Tensor:
        """Return labels (H, B); `NO_LABEL` for unknown samples."""
        places = torch.arange(len(self.keys), device=self.keys.device)
        place_B = _find_last(self.keys, places, keys_B)
        return torch.where(place_B >= 0, self.labels[:, place_B.clamp(min=0)], NO_LABEL)


def _find_last(keys_N: Tensor, values_N: Tensor, wanted_B: Tensor) -> Tensor:
    """Return the value (B,) of the last of the ascending `keys_N` equal to each wanted, or -1."""
    if len(keys_N) == 0:
        return torch.full_like(wanted_B, -1)
    place_B = torch.searchsorted(keys_N, wanted_B.contiguous(), right=True) - 1
    is_found_B = (place_B >= 0) & (keys_N[place_B.clamp(min=0)] == wanted_B)
    return torch.where(is_found_B, values_N[place_B.clamp(min=0)], -1)


def share_of(num_rows: int, group: ProcessGroup | None) -> slice:
    """Return this rank's part of `num_rows` rows that every rank holds; the parts are disjoint."""
    place, num_ranks = rank(group), world_size(group)
    return slice(num_rows * place // num_ranks, num_rows * (place + 1) // num_ranks)


def join_shares(values: Tensor, num_rows: int, group: ProcessGroup | None) -> Tensor:
    """Return integers (num_rows,) of all ranks, from those of each rank's `share_of` the rows."""
    joined = values.new_zeros(num_rows)
    joined[share_of(num_rows, group)] = values
    return all_reduce_sum(joined, group)
