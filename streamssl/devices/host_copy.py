"""Host copy: the value of a counter on a device, known to the host without waiting for the device.

The counter is a buffer, so that a checkpoint holds it. Its owner sets both, and forgets the copy
when a state is loaded.
"""

from torch import Tensor


class HostCopy:
    """The value of an integer scalar; it is read from the device once after `forget`."""

    def __init__(self) -> None:
        self._value: int | None = None

    def read(self, counter: Tensor) -> int:
        """Return the value of `counter`. Waits for the device if it is not known."""
        if self._value is None:
            self._value = int(counter)
        return self._value

    def set(self, value: int) -> None:
        """Note the value that the counter has now."""
        self._value = value

    def forget(self) -> None:
        """Read the counter the next time."""
        self._value = None
