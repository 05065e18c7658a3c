"""`streamssl shards pack`: pictures, or other shards, become shards."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from shards.admission import AdmissionConfig
from shards.entries import Labels
from shards.entries_table import Columns
from shards.errors import ConfigError
from shards.pack import PackConfig, PackReport, Watch, pack
from shards.pack_source import Kind, open_source
from shards.web import WebConfig
from streamssl.parsing import parse

_PLAIN_EVERY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Make shards from pictures, or from other shards. The same command goes on where it was."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder of pictures, a text file with a path or an address a line, a Parquet file with a
    column of them, or shards; on this machine or in any store."""
    out: Annotated[str, tyro.conf.Positional]
    """A new or empty folder for the shards, or an address such as s3://bucket/prefix."""
    kind: Kind = "auto"
    """What SOURCE is; auto: as it looks."""
    labels: Labels = "auto"
    """auto: sub-folders are classes; none: no labels."""
    columns: Columns = field(default_factory=Columns)
    subset: str | None = None
    """Of shards: a .parquet, .txt or .npy file of keys or uids; only these samples are taken."""
    admit: bool = False
    """Leave out what a run with these --admission settings would reject by its header; otherwise
    all is taken that can be read."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    web: WebConfig = field(default_factory=WebConfig)
    workers: int | None = None
    """How many shards are made at once; None: one for each core, if there is enough to do."""
    pack: Annotated[PackConfig, tyro.conf.arg(name="")] = field(default_factory=PackConfig)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers={self.workers}; it must be at least 1: leave it out")


def pack_shards(arguments: list[str], console: Console) -> int:
    """Make shards from pictures, lists of addresses, or other shards."""
    parsed = parse(Pack, "streamssl shards pack", arguments)
    source = open_source(parsed.source, parsed.kind, parsed.labels, parsed.columns, parsed.subset)
    with show_packing(console) as watch:
        report = pack(
            source,
            parsed.out,
            parsed.pack,
            web=parsed.web,
            admission=parsed.admission if parsed.admit else None,
            num_workers=parsed.workers,
            watch=watch,
        )
    for line in _lines(report):
        console.print(line)
    return 0


def _lines(report: PackReport) -> Iterator[str]:
    done = "written"
    if report.reused:
        done = "are there already, made from the same files"
    elif report.num_found:
        done = f"written, {report.num_found} shards of them by an earlier start"
    yield (
        f"{report.num_samples:,} samples in {report.num_shards} shards ({report.num_bytes:,} "
        f"bytes) in {report.out}: {done}"
    )
    if report.num_unselected:
        yield f"{report.num_unselected:,} samples are not in the subset list"
    if report.num_renamed:
        yield f"{report.num_renamed:,} samples have a new key: their shard had theirs already"
    for reason, count in sorted(report.skipped.items()):
        yield f"skipped {count:,}: {reason}"


@contextmanager
def show_packing(console: Console) -> Iterator[Watch]:
    """What a person sees of a pack: a bar on a terminal, a line now and then anywhere else."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Bar(console=console, transient=True) as bar:
        yield _Bar(bar)


class _Bar(Watch):
    """A bar of pictures, or of bytes."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def begin(self, num_units: int, unit: str) -> None:
        column = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        self._bar.columns = (BarColumn(), column, TimeRemainingColumn())
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task("packing", total=num_units)

    def advance(self, num_units: int) -> None:
        self._bar.advance(self._bar.task_ids[-1], num_units)

    def say(self, text: str) -> None:
        self._bar.console.print(text)


class _Lines(Watch):
    """Plain lines."""

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
            self.say(f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} a second")

    def say(self, text: str) -> None:
        self._console.print(text)
