"""Signal handlers of a command that saves before it leaves: the first signal asks, the second ends.

A closed terminal sends SIGHUP, and every later output to it fails; the command must go on.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

from rich.console import Console

from shards.stop_signals import STOP_SIGNALS

# A step and a checkpoint take less, or something hangs.
STOP_SECONDS: Final = 300.0
# Time for files and child processes to be closed after a second signal.
LEAVE_SECONDS: Final = 10.0
_INTERRUPTED: Final = 130


@contextmanager
def stop_on_signals(
    console: Console, ending: str = "stopping after this step"
) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after a stop signal; a second one interrupts.

    The process leaves at the latest `STOP_SECONDS` after the first signal, and `LEAVE_SECONDS`
    after the second. A signal that the caller ignores, as nohup does with SIGHUP, stays ignored.
    """
    received: list[int] = []
    asked: SimpleQueue[bool] = SimpleQueue()  # may be used in a handler
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _drop_output(terminals)
        received.append(number)
        asked.put(True)
        if len(received) > 1:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            console.print(
                f"{signal.Signals(number).name}: {ending}, within {STOP_SECONDS:.0f} s; once more "
                "to leave at once"
            )

    threading.Thread(target=_watch, args=(asked,), name="stop", daemon=True).start()
    before = {
        number: signal.signal(number, handle)
        for number in STOP_SIGNALS
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(False)


def _watch(asked: SimpleQueue[bool]) -> None:
    """End this process if a signal has no effect in time, whatever its other threads wait for.

    `asked` gets True for each signal, and False at the end of the work.
    """
    for seconds in chain((None, STOP_SECONDS), repeat(LEAVE_SECONDS)):
        try:
            if not asked.get(timeout=seconds):
                return
        except Empty:
            text = f"streamssl: not ended {seconds:.0f} s after the signal; leaving at once\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
            os._exit(_INTERRUPTED)


def _drop_output(descriptors: list[int]) -> None:
    """Send the output to nowhere: its terminal is closed."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in descriptors:
            os.dup2(nowhere, number)
        os.close(nowhere)
