"""Progress of a run: one live line on a terminal, plain lines in a file or a pipe."""

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from shards.file_systems import is_storage_failure

# Rates are means over this many steps.
_WINDOW_STEPS = 50
_PLAIN_EVERY_SECONDS = 10.0


class Progress:
    """Shows images/s, data wait, loss and time left; a context manager. Counts what was trained."""

    def __init__(self, num_steps: int, start_step: int, console: Console) -> None:
        self._num_steps, self._start_step = num_steps, start_step
        self._console = console
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW_STEPS)
        self._live = Live(Text("waiting for the first batch"), console=console, transient=True)
        self._last_plain = 0.0
        self._began = time.monotonic()
        self.last_step = start_step
        self.num_samples = 0
        self.num_rejects = 0
        self.seconds = 0.0
        self.data_wait_seconds = 0.0

    def step(
        self,
        step: int,
        loss: float,
        num_samples: int,
        num_rejects: int,
        step_seconds: float,
        data_wait_seconds: float,
    ) -> None:
        """Show one finished step."""
        self._recent.append((step_seconds + data_wait_seconds, num_samples, data_wait_seconds))
        self.last_step = step
        self.num_samples += num_samples
        self.num_rejects += num_rejects
        self.seconds += step_seconds + data_wait_seconds
        self.data_wait_seconds += data_wait_seconds
        line = self._line(step, loss)
        if self._console.is_terminal:
            self._live.update(Text(line))
        elif time.monotonic() - self._last_plain >= _PLAIN_EVERY_SECONDS or step == self._num_steps:
            self._last_plain = time.monotonic()
            self._print(line)

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._print(text)

    def _print(self, line: str) -> None:
        """Print a line, unless the disk that the output goes to is full: the run goes on."""
        try:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
        except OSError as error:
            if not is_storage_failure(error):
                raise

    def _line(self, step: int, loss: float) -> str:
        seconds = max(sum(entry[0] for entry in self._recent), 1e-9)
        images = sum(entry[1] for entry in self._recent)
        waited = sum(entry[2] for entry in self._recent)
        left = seconds / len(self._recent) * (self._num_steps - step)
        rejected = f" · {self.num_rejects} rejected" if self.num_rejects else ""
        return (
            f"step {step}/{self._num_steps} · loss {loss:.4f} · {_rate(images / seconds)} "
            f"images/s · data wait {waited / seconds:.1%}{rejected} · {_duration(left)} left"
        )

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
