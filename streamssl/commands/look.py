"""`streamssl shards verify` and `stats`: a look through whole shards."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from shards.admission import AdmissionConfig
from shards.errors import ConfigError
from shards.manifest import open_manifest
from shards.sources import RangeReader, redact
from shards.survey import Survey, survey
from streamssl.parsing import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Read every shard once."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder, glob, brace pattern or single tar."""
    depth: Literal["headers", "pixels"] = "pixels"
    """pixels decodes every picture; headers is quicker."""
    threads: int = 2
    """How many threads read and decode."""
    json: bool = False
    """Print one JSON object instead of a table."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}; it must be at least 1")


def verify(arguments: list[str], console: Console) -> int:
    """Find what is wrong with shards; exit status 1 if anything is."""
    parsed = parse(Look, "streamssl shards verify", arguments)
    found = _survey(parsed, console)
    if parsed.json:
        console.out(json.dumps(_survey_fields(found)))
        return 1 if found.rejects else 0
    total = sum(found.rejects.values())
    console.print(f"{found.num_samples:,} samples in {found.num_shards} shards, {total:,} rejected")
    for reason, count in found.rejects.most_common():
        first = found.examples[reason]
        where = f"shard {first.shard}, byte {first.offset}, key {first.key!r}"
        console.print(f"  {reason:<14} {count:>8,}   first: {where}: {first.detail}")
    return 1 if found.rejects else 0


def stats(arguments: list[str], console: Console) -> int:
    """Count sizes, formats and rejects of shards."""
    parsed = parse(Look, "streamssl shards stats", arguments)
    found = _survey(parsed, console)
    if parsed.json:
        console.out(json.dumps(_survey_fields(found)))
        return 0
    table = Table(title=redact(parsed.data), title_justify="left", show_header=False)
    for name, value in _survey_fields(found).items():
        shown = json.dumps(value) if isinstance(value, dict) else f"{value:,}"
        table.add_row(name.replace("_", " "), shown)
    console.print(table)
    return 0


def _survey(parsed: Look, console: Console) -> Survey:
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not parsed.json
    with Bar(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("reading", total=manifest.num_bytes)
        return survey(
            manifest,
            reader,
            parsed.admission,
            depth=parsed.depth,
            num_threads=parsed.threads,
            progress=lambda num_bytes: bar.advance(task, num_bytes),
        )


def _survey_fields(found: Survey) -> dict[str, Any]:
    sides = sorted(found.sides)
    num = len(sides)
    return {
        "shards": found.num_shards,
        "bytes": found.num_bytes,
        "samples": found.num_samples,
        "pictures": num,
        "rejected": sum(found.rejects.values()),
        "reject_reasons": dict(found.rejects),
        "formats": dict(found.formats),
        "members": dict(found.extensions),
        "megapixels": round(found.num_pixels / 1e6, 1),
        "mean_picture_bytes": round(found.picture_bytes / num) if num else 0,
        "shorter_side_p5": sides[num // 20] if num else 0,
        "shorter_side_p50": sides[num // 2] if num else 0,
        "shorter_side_p95": sides[num * 19 // 20] if num else 0,
    }
