"""What ends packs in tests. Workers import it too, so nothing here takes seconds to load."""

import os
import signal

from shards.pack.pack import PackProgress


class Stop(BaseException):
    """What ends a pack."""


class StopAfter(PackProgress):
    """Stops a pack after so many units."""

    def __init__(self, num: int) -> None:
        self._left = num
        self.messages: list[str] = []

    def advance(self, num_units: int) -> None:
        """Count them."""
        self._left -= num_units
        if self._left < 0:
            raise Stop

    def message(self, text: str) -> None:
        """Remember it."""
        self.messages.append(text)


def kill_yourself(parent: int, *_: object) -> bytes:
    """What an entry reads with that takes its worker along."""
    assert os.getpid() != parent, "only a worker may be killed"
    os.kill(os.getpid(), signal.SIGKILL)
    return b""
