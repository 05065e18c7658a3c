"""Progress of a pack: a bar on a terminal, one line every ten seconds elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from shards.pack.pack import PackProgress

_PLAIN_EVERY_SECONDS = 10.0
_BAR_EVERY_SECONDS = 0.1


@contextmanager
def show_packing(console: Console) -> Iterator[PackProgress]:
    """Yield a progress handler that prints on `console`."""
    if not console.is_terminal:
        yield _ProgressLines(console)
        return
    with Bar(console=console, transient=True) as bar:
        yield _ProgressBar(bar)


class _ProgressBar(PackProgress):
    """Bar of images, or of bytes."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._waiting, self._shown = 0, 0.0

    def begin(self, num_units: int, unit: str) -> None:
        column = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        self._bar.columns = (BarColumn(), column, TimeRemainingColumn())
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task("packing", total=num_units)

    def advance(self, num_units: int) -> None:
        self._waiting += num_units
        if time.monotonic() - self._shown >= _BAR_EVERY_SECONDS:
            self._bar.advance(self._bar.task_ids[-1], self._waiting)
            self._waiting, self._shown = 0, time.monotonic()

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


class _ProgressLines(PackProgress):
    """Plain lines, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = self._total = 0
        self._unit = ""

    def begin(self, num_units: int, unit: str) -> None:
        self._done, self._total, self._unit = 0, num_units, unit
        self._began = self._shown = time.monotonic()

    def advance(self, num_units: int) -> None:
        self._done += num_units
        now = time.monotonic()
        if now - self._shown >= _PLAIN_EVERY_SECONDS:
            self._shown = now
            rate = self._done / (now - self._began)
            self.message(f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} a second")

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)
