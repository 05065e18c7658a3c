"""Raylet watch: notices that the raylet under a driver has ended.

The driver cannot outlive it: a later call of Ray ends the process, without a word. So the watch
says what happened, and ends the process itself, with all that the raylet had started.
"""

import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.ray_internals import end_ray_here, raylet_of_driver

_POLL_SECONDS = 0.5
EXIT_CODE = 1


class RayletWatch:
    """Calls `lost` and ends this process when the raylet has ended. A context.

    It watches on Linux only, and only a raylet on this machine.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._closed = threading.Event()
        self._family: list[int] = []
        self._thread = threading.Thread(target=self._watch, name="raylet", daemon=True)

    def _watch(self) -> None:
        pid = raylet_of_driver()
        if pid is None or not hasattr(os, "pidfd_open") or not self._wait_for_end(pid):
            return
        try:
            self._lost()
        finally:
            with suppress(Exception):  # whatever is left of Ray must not keep this process
                self._end_family()
                end_ray_here()
            os._exit(EXIT_CODE)

    def _wait_for_end(self, pid: int) -> bool:
        """Wait until the process has ended; return False if the watch is closed before."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            while not self._closed.is_set():
                self._family = _children(pid) or self._family
                if ended.poll(1000 * _POLL_SECONDS):
                    return not self._closed.is_set()
            return False
        finally:
            os.close(descriptor)

    def _end_family(self) -> None:
        """Kill the agents and workers that the raylet had started: some notice its end late."""
        for pid in self._family:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> "RayletWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started; none when it has ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found
