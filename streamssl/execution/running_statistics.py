"""Running statistics of an encoder that runs more than once in a step: they change once.

Batch norm counts every forward pass in training. A pass that is only repeated for its activations
must not count, and the passes of micro-batches count together as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_PREFIXES = ("running_", "num_batches_tracked")


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running statistics of all layers, and their counts of batches.

    Layers of torch and timm name them alike. A momentum copy has none.
    """
    return [
        buffer
        for name, buffer in network.named_buffers()
        if name.rpartition(".")[2].startswith(_PREFIXES)
    ]


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Undo the changes of running statistics at the end of the block, also after an error."""
    statistics = running_statistics(network)
    before = [value.clone() for value in statistics]
    try:
        yield
    finally:
        _copy(statistics, before)


class StatisticsMean:
    """Mean of the running statistics after passes that all begin with the same ones.

    Floating point statistics become the mean over the passes; batch norm so takes the mean of the
    batches' means and variances, with its momentum once. Counts rise by one pass.
    """

    def __init__(self, network: nn.Module) -> None:
        self._statistics = running_statistics(network)
        self._before = [value.clone() for value in self._statistics]
        self._floats = [value for value in self._statistics if value.is_floating_point()]
        self._sums = [torch.zeros_like(value) for value in self._floats]
        self._num_passes = 0

    @contextmanager
    def pass_(self) -> Iterator[None]:
        """Count the block as one more pass."""
        if self._num_passes:
            _copy(self._statistics, self._before)
        yield
        if self._floats:
            torch._foreach_add_(self._sums, self._floats)
        self._num_passes += 1

    def store(self) -> None:
        """Replace the statistics by the mean over the passes."""
        if self._floats:
            torch._foreach_div_(self._sums, self._num_passes)
            _copy(self._floats, self._sums)


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
