"""`streamssl shards verify` and `stats`: a look through whole shards, or at some of them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from shards.errors import ConfigError
from shards.inspect.shard_check import ShardReport
from shards.inspect.shard_scanner import Depth, ScanResult, ShardScanner
from shards.records import Reject
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from streamssl.commands.argument_parser import parse

# As many bad shards are named on a screen; a report has them all.
_MAX_SHOWN = 20
_PERCENTS = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """Read shards once."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders, globs, brace patterns or single tars."""
    threads: int = 2
    """How many threads read, and how many decode."""
    json: bool = False
    """Print one JSON object instead of a table."""
    report: Path | None = None
    """Write that JSON object to this file, too."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify(ScanOptions):
    """Read every shard once and say what is wrong."""

    depth: Depth = "pixels"
    """pixels decodes every image, in processes that may die of one; headers is quicker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats(ScanOptions):
    """Count what is in shards."""

    depth: Depth = "headers"
    """headers counts what an image says of itself; pixels decodes every image as well."""
    sample: int | None = None
    """ScanOptions at so many chunks, spread over the data, and at nothing else."""

    def __post_init__(self) -> None:
        ScanOptions.__post_init__(self)
        if self.sample is not None and self.sample < 1:
            raise ConfigError(
                f"sample={self.sample}; it must be at least 1 chunk; leave it out to see everything"
            )


def verify(arguments: list[str], console: Console) -> int:
    """Find what is wrong with shards; exit status 1 if anything is."""
    parsed = parse(Verify, "streamssl shards verify", arguments)
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader)
    with _surveyor(parsed, manifest, reader, console, manifest.num_bytes) as surveyor:
        survey = surveyor.scan_all()
    fields = _counts(survey, manifest) | _troubles(survey, manifest)
    _write(fields, parsed, console)
    if not parsed.json:
        _print_troubles(survey, console)
    return 0 if survey.is_good else 1


def stats(arguments: list[str], console: Console) -> int:
    """Count sizes, formats and rejects of shards."""
    parsed = parse(Stats, "streamssl shards stats", arguments)
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader)
    num_bytes = parsed.sample * manifest.suggest_chunk_bytes() if parsed.sample else 1 << 62
    num_bytes = min(num_bytes, manifest.num_bytes)
    with _surveyor(parsed, manifest, reader, console, num_bytes) as surveyor:
        if parsed.sample:
            survey = surveyor.scan_some(parsed.sample)
        else:
            survey = surveyor.scan_all()
    fields = _counts(survey, manifest) | _sizes(survey)
    _write(fields, parsed, console)
    if not parsed.json:
        table = Table(
            title=" ".join(map(redact, parsed.data)), title_justify="left", show_header=False
        )
        for name, value in fields.items():
            table.add_row(name.replace("_", " "), _shown(value))
        console.print(table)
        if survey.looked_chunks < survey.num_chunks:
            console.print(
                f"looked at {survey.looked_chunks:,} of {survey.num_chunks:,} chunks; there are "
                f"about {_scaled(survey):,} samples in all shards"
            )
    return 1 if any(report.unreadable for report in survey.shards) else 0


@contextmanager
def _surveyor(
    parsed: Verify | Stats,
    manifest: Manifest,
    reader: RangeReader,
    console: Console,
    num_bytes: int,
) -> Iterator[ShardScanner]:
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not parsed.json
    with Bar(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("reading", total=num_bytes)
        yield ShardScanner(
            manifest,
            reader,
            parsed.admission,
            depth=parsed.depth,
            isolated=parsed.depth == "pixels",
            num_threads=parsed.threads,
            progress=lambda passed: bar.advance(task, passed),
        )


def _write(fields: dict[str, Any], parsed: ScanOptions, console: Console) -> None:
    """The machine-readable report: on the screen, and in a file that is whole or not there."""
    if parsed.json:
        console.out(json.dumps(fields))
    if parsed.report is not None:
        part = parsed.report.with_name(parsed.report.name + ".part")
        try:
            part.write_text(json.dumps(fields, indent=1) + "\n")
            os.replace(part, parsed.report)
        except OSError as error:
            raise ConfigError(
                f"report={parsed.report} cannot be written ({error.strerror}); name a file in a "
                "folder that exists"
            ) from error


def _counts(survey: ScanResult, manifest: Manifest) -> dict[str, Any]:
    found = survey.found
    return {
        "manifest": manifest.digest,
        "shards": survey.num_shards,
        "bytes": survey.num_bytes,
        "chunk_bytes": survey.chunk_bytes,
        "chunks": survey.num_chunks,
        "looked_at_chunks": survey.looked_chunks,
        "looked_at_bytes": survey.looked_bytes,
        "samples": found.num_samples,
        "images": found.num_images,
        "rejected": found.rejects.total(),
        "reject_reasons": dict(found.rejects.most_common()),
        "unreadable": [report.uri for report in survey.shards if report.unreadable],
    }


def _troubles(survey: ScanResult, manifest: Manifest) -> dict[str, Any]:
    uris = [redact(shard.uri) for shard in manifest.shards]
    return {
        "first_rejects": {
            reason: {"uri": uris[first.shard], **_place(first)}
            for reason, first in survey.found.examples.items()
        },
        "irregular": [r.uri for r in survey.shards if r.irregular_at is not None],
        "walked": [r.uri for r in survey.shards if r.needs_walk_at is not None],
        "repeated_keys": sum(report.num_repeated for report in survey.shards),
        "scattered_keys": sum(report.num_scattered for report in survey.shards),
        "links": sum(report.num_links for report in survey.shards),
        "shard_reports": [_shard_fields(report) for report in survey.shards],
    }


def _shard_fields(report: ShardReport) -> dict[str, Any]:
    return {
        "uri": report.uri,
        "bytes": report.num_bytes,
        "samples": report.num_samples,
        "rejects": {
            reason: {"count": count, "first": _place(report.examples[reason])}
            for reason, count in report.rejects.items()
        },
        "irregular_at_byte": report.irregular_at,
        "walked_from_byte": report.needs_walk_at,
        "repeated_keys": report.num_repeated,
        "scattered_keys": report.num_scattered,
        "first_scattered_at_byte": report.first_scattered,
        "links": report.num_links,
        "unreadable": report.unreadable,
    }


def _place(reject: Reject) -> dict[str, Any]:
    return {"byte": reject.offset, "key": reject.key, "detail": reject.detail}


def _print_troubles(survey: ScanResult, console: Console) -> None:
    found = survey.found
    console.print(
        f"{found.num_samples:,} samples in {survey.num_shards} shards, "
        f"{found.rejects.total():,} rejected",
        markup=False,
    )
    for reason, count in found.rejects.most_common():
        first = found.examples[reason]
        where = f"{survey.shards[first.shard].uri}, byte {first.offset}, key {first.key!r}"
        line = f"  {reason:<16} {count:>8,}   first: {where}: {first.detail}"
        console.print(line, markup=False)
    lines = [line for report in survey.shards for line in _say(report)]
    for line in lines[:_MAX_SHOWN]:
        console.print(line, markup=False)
    if len(lines) > _MAX_SHOWN:
        console.print(f"and {len(lines) - _MAX_SHOWN} more: --report FILE lists them")


def _say(report: ShardReport) -> Iterator[str]:
    """What is wrong, or odd, about a shard as a whole."""
    if report.unreadable is not None:
        yield f"unreadable: {report.unreadable}"
    if report.irregular_at is not None:
        yield (
            f"irregular: {report.uri}, byte {report.irregular_at}: what lies inside a member looks "
            "like samples; a run notices and reads the shard from byte 0: pack it again"
        )
    elif report.needs_walk_at is not None:
        yield (
            f"slow: {report.uri}, byte {report.needs_walk_at}: a member holds a tar, or is too large to "
            "look into; a run reads the shard from byte 0"
        )
    if report.num_scattered:
        yield (
            f"scattered: {report.uri}, byte {report.first_scattered}: {report.num_scattered:,} "
            "samples have the key of an earlier one and other members; the members of a sample "
            "must lie together: pack it again"
        )
    if report.num_links:
        yield (
            f"links: {report.uri}: {report.num_links:,} links have no bytes of their own and make "
            "no sample; a shard must hold the files: pack it again with `tar --dereference "
            "--hard-dereference`"
        )


def _sizes(survey: ScanResult) -> dict[str, Any]:
    found = survey.found
    per_shard = [report.num_samples for report in survey.shards]
    decoding = found.num_decoded / found.decode_seconds if found.decode_seconds else 0
    reading = survey.looked_bytes / survey.read_seconds if survey.read_seconds else 0
    return {
        "formats": dict(found.formats.most_common()),
        "members": dict(found.extensions.most_common()),
        "megapixels": round(found.num_pixels / 1e6, 1),
        "shorter_side": found.shorter_sides.percentiles(_PERCENTS),
        "longer_side": found.longer_sides.percentiles(_PERCENTS),
        "width_to_height": found.aspect_ratios.percentiles(_PERCENTS),
        "image_bytes": found.sizes.percentiles(_PERCENTS),
        "mean_image_bytes": round(found.image_bytes / max(1, found.num_images)),
        "samples_per_shard": [min(per_shard), max(per_shard)] if per_shard else None,
        "samples_in_all": _scaled(survey),
        "decoded_per_second_by_a_core": round(decoding),
        "bytes_per_second_by_a_reader": round(reading),
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int | float) else json.dumps(value)


def _scaled(survey: ScanResult) -> int:
    """How many samples there are, as far as what was looked at tells."""
    return round(survey.found.num_samples * survey.num_bytes / max(1, survey.looked_bytes))
