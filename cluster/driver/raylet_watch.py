"""Raylet watch: notices that the raylet under a driver has ended.

The driver cannot outlive it: the next call of Ray ends the process, without a word. So the watch
says what happened first, and ends the process itself.
"""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

import psutil

from cluster.ray_internals import end_ray_here, raylet_of_driver

_POLL_SECONDS = 0.5
EXIT_CODE = 1


class RayletWatch:
    """Calls `lost` and ends this process when the raylet has ended. A context."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raylet", daemon=True)

    def _watch(self) -> None:
        pid = raylet_of_driver()
        if pid is None or not _wait_for_end(pid, self._closed):
            return
        try:
            self._lost()
        finally:
            with suppress(Exception):  # whatever is left of Ray must not keep this process
                end_ray_here()
            os._exit(EXIT_CODE)

    def __enter__(self) -> "RayletWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()


def _wait_for_end(pid: int, closed: threading.Event) -> bool:
    """Wait until a process has ended; return False if the watch is closed before."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return not closed.is_set()
    except (AttributeError, OSError):  # not Linux, or an old one
        return _poll(pid, closed)
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        while not closed.is_set():
            if ended.poll(1000 * _POLL_SECONDS):
                return not closed.is_set()
        return False
    finally:
        os.close(descriptor)


def _poll(pid: int, closed: threading.Event) -> bool:
    while not closed.wait(_POLL_SECONDS / 5):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
    return False
