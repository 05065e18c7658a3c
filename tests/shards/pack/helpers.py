"""Interruptions of packs. Workers import this module, so it must load fast."""

import os
import signal

from shards.pack.pack import PackProgress


class Stop(BaseException):
    """Stops a pack."""


class StopAfter(PackProgress):
    """Stops a pack after a number of units, and keeps its messages."""

    def __init__(self, num: int) -> None:
        self._left = num
        self.messages: list[str] = []

    def advance(self, num_units: int) -> None:
        self._left -= num_units
        if self._left < 0:
            raise Stop

    def message(self, text: str) -> None:
        self.messages.append(text)


def kill_worker(parent: int, *_: object) -> bytes:
    """Kill the worker process that reads an entry with this function."""
    assert os.getpid() != parent, "only a worker may be killed"
    os.kill(os.getpid(), signal.SIGKILL)
    return b""
