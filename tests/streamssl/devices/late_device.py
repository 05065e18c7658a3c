"""A device that is steps behind its host: what a GPU does to the numbers of a step."""

from collections.abc import Sequence

from torch import Tensor


class LateDevice:
    """Numbers come when `lag` more steps were begun, or when the host waits for them.

    `num_waits` counts the numbers that the host has waited for.
    """

    def __init__(self, lag: int) -> None:
        self.lag, self.num_begun, self.num_waits = lag, 0, 0

    def begin(self, tensors: Sequence[Tensor]) -> "LateTransfer":
        self.num_begun += 1
        return LateTransfer(self, tensors)


class LateTransfer:
    """Numbers of one step on their way."""

    def __init__(self, device: LateDevice, tensors: Sequence[Tensor]) -> None:
        self._device, self._tensors = device, [tensor.clone() for tensor in tensors]
        self._number, self._is_here = device.num_begun, False

    @property
    def is_done(self) -> bool:
        return self._is_here or self._device.num_begun >= self._number + self._device.lag

    def wait(self) -> Sequence[Tensor]:
        if not self.is_done:
            self._device.num_waits += 1
            self._is_here = True
        return self._tensors
