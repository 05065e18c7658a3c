"""Number transfer: numbers of a step on their way from the device to the host.

A host that reads a number waits until the device has computed it. Here the copy is queued behind
the step, into pinned memory, and the host goes on with the next step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class NumberTransfer(Protocol):
    """Tensors of a device on their way to the host."""

    @property
    def is_done(self) -> bool:
        """True if the numbers are on the host. Does not wait."""

    def wait(self) -> Sequence[Tensor]:
        """Return the tensors on the CPU; wait for them if they are under way."""


BeginTransfer = Callable[[Sequence[Tensor]], NumberTransfer]


def begin_transfer(tensors: Sequence[Tensor]) -> NumberTransfer:
    """Begin to copy tensors to the CPU, without waiting for their device.

    Nothing may write to them in place afterwards.
    """
    if any(tensor.is_cuda for tensor in tensors):
        return _FromDevice(tensors)
    return _OnHost(tensors)


class _OnHost:
    """Tensors of the CPU, which need no copy."""

    is_done = True

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def wait(self) -> Sequence[Tensor]:
        return self._tensors


class _FromDevice:
    """Copies in pinned memory, and the event after the last of them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Without blocking, the copy of a tensor of the device lies in pinned memory.
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._event = torch.cuda.Event()
        self._event.record()

    @property
    def is_done(self) -> bool:
        return self._event.query()

    def wait(self) -> Sequence[Tensor]:
        self._event.synchronize()
        return self._copies


@dataclass(frozen=True, slots=True)
class HostReading:
    """A reading that the host computes: on a device, `function` would wait for its result.

    `function` returns a scalar from `rows`, which are small: they travel with the numbers.
    """

    rows: Tensor
    function: Callable[[Tensor], Tensor]


Reading = Tensor | float | HostReading
"""A reading of a step: a number, a scalar on its device, or one that the host computes."""


def read_on_host(rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor | HostReading:
    """Return `function(rows)`; for rows of a device, a reading that is computed once they came."""
    return HostReading(rows, function) if rows.is_cuda else function(rows)
