"""A momentum copy: a network that follows another as an exponential moving average."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update_(
    averages: Iterable[Tensor], sources: Iterable[Tensor], momentum: float | Tensor
) -> None:
    """averages = momentum * averages + (1 - momentum) * sources, in place (MoCo, eq. 2)."""
    kept, new = list(averages), list(sources)
    torch._foreach_mul_(kept, momentum)
    torch._foreach_add_(kept, torch._foreach_mul(new, 1.0 - momentum))


class MomentumCopy(nn.Module):
    """A copy of `source` that is never trained, only averaged.

    Parameters are averaged and buffers are not: batch norm in the copy keeps statistics of its own
    forward passes, as in MoCo, MoCo v3 and BYOL. Update before keys are encoded.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(source).requires_grad_(False)

    def forward(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self.network(*inputs)

    def update(self, source: nn.Module, momentum: float) -> None:
        """Move towards `source`: arXiv:1911.05722, eq. 2."""
        ema_update_(self.network.parameters(), source.parameters(), momentum)
