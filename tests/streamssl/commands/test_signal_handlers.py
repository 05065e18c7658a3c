"""A signal asks a run to save; its other processes do not obey it."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from shards.stop_signals import STOP_SIGNALS, ignore_stop_signals, stop_signals_blocked
from streamssl.commands.signal_handlers import stop_on_signals
from streamssl.terminal import TerminalOutput


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    """SIGUSR1, SIGUSR2 and SIGHUP killed a run without saving."""
    text = io.StringIO()
    before = signal.getsignal(number)
    with stop_on_signals(Console(file=text, soft_wrap=True)) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    assert signal.getsignal(number) == before
    assert f"{number.name}: stopping after this step, within 300 s; once more" in text.getvalue()


def test_nohup_is_respected() -> None:
    """A run that was started to survive its terminal must do so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(Console(quiet=True)) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_to_a_closed_terminal_does_not_end_the_run() -> None:
    """The first line after SIGHUP would end the run in a traceback, before it has saved."""

    class Closed(io.StringIO):
        number = errno.EIO

        def write(self, _: str) -> int:
            raise OSError(self.number, "closed")

    output = Closed()
    Console(file=TerminalOutput(output)).print("step 1")  # type: ignore[arg-type]
    output.number = errno.ENOSPC
    with pytest.raises(OSError, match="closed"):
        TerminalOutput(output).write("step 2")


def test_processes_that_start_in_the_block_receive_no_stop_signal() -> None:
    """A signal to all processes of a run would end those that it needs to save."""
    with stop_signals_blocked():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for number in STOP_SIGNALS:
        child.send_signal(number)
    child.communicate(b"\n", timeout=30)
    assert child.returncode == 0


def test_a_worker_ignores_the_stop_signals() -> None:
    """Ray's workers of a joined cluster inherit no mask."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        ignore_stop_signals()
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
