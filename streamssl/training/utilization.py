"""Model FLOPs utilization: the operations of a step relative to the peak of its GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

# From the data sheets: bfloat16, dense, at full power; a multiply-add counts twice.
_PEAKS: Final = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A100", 312e12),
    ("A10", 125e12),
)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak operations a second of a known GPU in this precision, or None."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS if known in name), None)


class Utilization:
    """Counts the operations of the first step, and relates every step to `peak` a second.

    All crops of a group have one size, so every step has the same number of operations. Operations
    that a method begins later, such as those of a queue, are not counted; those that `--recompute`
    and `--micro-batches` repeat are.
    """

    def __init__(self, peak: float) -> None:
        self._peak = peak
        self._num_flops = 0
        self._ended: float | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations of the block in the first step, which takes longer."""
        if self._num_flops:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._num_flops = counter.get_total_flops()

    def step_ended(self, now: float) -> dict[str, float]:
        """Return the utilization since the last step ended; nothing for the first step.

        `now` are seconds of a clock of the device: the host may be steps ahead of it.
        """
        before, self._ended = self._ended, now
        if before is None:
            return {}
        return {"flops_utilization": self._num_flops / (self._peak * (now - before))}
