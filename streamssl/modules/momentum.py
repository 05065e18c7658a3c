"""Momentum copy: a network that follows another as an exponential moving average."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def ema_update_(
    averages: Iterable[Tensor], sources: Iterable[Tensor], momentum: float | Tensor
) -> None:
    """Set averages = momentum * averages + (1 - momentum) * sources, in place (MoCo, eq. 2)."""
    kept, new = list(averages), list(sources)
    torch._foreach_mul_(kept, momentum)
    torch._foreach_add_(kept, torch._foreach_mul(new, 1.0 - momentum))


class MomentumCopy(nn.Module):
    """A copy of `source` that is averaged, not trained. Update it before keys are encoded.

    Batch norm in the copy always uses the statistics of its batch, as in MoCo, MoCo v3 and BYOL, so
    it keeps no running statistics. On several ranks it uses the rows of all ranks, unless the copy
    has `own_batch_norm`: then its owner selects the rows.
    """

    def __init__(self, source: nn.Module, *, own_batch_norm: bool = False) -> None:
        super().__init__()
        self.own_batch_norm = own_batch_norm
        self.network = deepcopy(source).requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def forward(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self.network(*inputs)

    def update(self, source: nn.Module, momentum: float) -> None:
        """Move towards `source`: arXiv:1911.05722, eq. 2."""
        ema_update_(self.network.parameters(), source.parameters(), momentum)
