"""Stop signals: those that ask a run to save and leave. Its other processes must not obey them.

A terminal, a scheduler and systemd send a signal to all processes of a run at once. The process
that a user starts answers; its readers, trainers and decoders work until it ends them.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def ignore_stop_signals() -> None:
    """Ignore the stop signals in this process. Python allows that in its main thread only."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in this thread: processes that it starts never receive them.

    A signal that arrives meanwhile is handled at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
