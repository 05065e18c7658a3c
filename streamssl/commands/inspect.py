"""`streamssl shards verify` and `stats`: scan whole shards, or a sample of their chunks."""

import json
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

from shards.access import raise_denied
from shards.errors import ConfigError
from shards.files import write_atomic
from shards.inspect.layout_report import label_lines, listing_lines
from shards.inspect.shard_check import ShardReport
from shards.inspect.shard_scanner import Depth, ScanResult, ShardScanner
from shards.member_names import Keys
from shards.plain_json import to_json
from shards.records import Reject
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from streamssl.commands.argument_parser import parse

# The screen shows this many faults; the report lists all.
_MAX_SHOWN = 20
_PERCENTS = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """Options of both commands."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders, globs, brace patterns or single tars."""
    keys: Keys = "auto"
    """Rule of sample keys: first_dot as in WebDataset, or last_dot for file names with dots; auto
    takes what the shards show."""
    threads: int = 2
    """Number of threads that read, and of threads that decode."""
    json: bool = False
    """Print one JSON object instead of a table."""
    report: Path | None = None
    """Also write the JSON object to this file."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify(ScanOptions):
    """Read every shard once and report faults."""

    depth: Depth = "pixels"
    """pixels decodes every image, in child processes; headers is faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats(ScanOptions):
    """Count samples, formats and sizes. A report, not a judgement: rejects are counted, and the
    exit code is 0. It is 1 if a shard cannot be read, or if no sample of the shards can be used.
    `streamssl shards verify` ends with 1 for any defect."""

    depth: Depth = "headers"
    """headers reads the headers of images; pixels also decodes every image."""
    sample: int | None = None
    """Scan only this many chunks, spread over the data."""

    def __post_init__(self) -> None:
        ScanOptions.__post_init__(self)
        if self.sample is not None and self.sample < 1:
            raise ConfigError(
                f"sample={self.sample}; it must be at least 1 chunk; leave it out to scan all"
            )


def verify(arguments: list[str], console: Console) -> int:
    """Report faults of shards; exit status 1 if there are any."""
    parsed = parse(Verify, "streamssl shards verify", arguments)
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader, keys=parsed.keys, bad_shards="report")
    with _scanner(parsed, manifest, reader, console, manifest.num_bytes) as scanner:
        result = scanner.scan_all()
    fields = _counts(result, manifest) | _faults(result, manifest)
    fields |= {"layout": _layout(result, manifest, parsed)}
    _write(fields, parsed, console)
    if not parsed.json:
        console.print(
            f"{result.stats.num_samples:,} samples in {result.num_shards} shards, "
            f"{result.stats.rejects.total():,} rejected",
            markup=False,
        )
        _print_faults(result, manifest, console)
        _print_layout(fields["layout"], console)
    # Names that other tools misread are a fault, unless the user chose their rule.
    is_usual = parsed.keys != "auto" or {s.names.keys for s in manifest.shards} == {"first_dot"}
    if not is_usual and not parsed.json:
        console.print(
            "not good: tools that cut keys at the first dot join images of these shards; "
            "`streamssl shards pack SHARDS OUT` writes names without dots, and --keys last_dot "
            "accepts them"
        )
    return 0 if result.is_good and is_usual and not manifest.empty + manifest.unfinished else 1


def stats(arguments: list[str], console: Console) -> int:
    """Count sizes, formats and rejects of shards."""
    parsed = parse(Stats, "streamssl shards stats", arguments)
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader, keys=parsed.keys, bad_shards="report")
    num_bytes = parsed.sample * manifest.suggest_chunk_bytes() if parsed.sample else 1 << 62
    num_bytes = min(num_bytes, manifest.num_bytes)
    with _scanner(parsed, manifest, reader, console, num_bytes) as scanner:
        if parsed.sample:
            result = scanner.scan_some(parsed.sample)
        else:
            result = scanner.scan_all()
    fields = _counts(result, manifest) | _sizes(result)
    layout = _layout(result, manifest, parsed)
    _write(fields | {"layout": layout}, parsed, console)
    if not parsed.json:
        table = Table(
            title=" ".join(map(redact, parsed.data)), title_justify="left", show_header=False
        )
        for name, value in fields.items():
            table.add_row(name.replace("_", " "), _format(value))
        console.print(table)
        if result.scanned_chunks < result.num_chunks:
            console.print(
                f"scanned {result.scanned_chunks:,} of {result.num_chunks:,} chunks; there are "
                f"about {_estimated_samples(result):,} samples in all shards"
            )
        _print_faults(result, manifest, console)
        _print_layout(layout, console)
    if not result.stats.num_images and not parsed.json:
        console.print(f"no sample can be used: {_why_none(result, manifest)}", markup=False)
    is_read = not any(report.unreadable for report in result.shards)
    return 0 if is_read and result.stats.num_images else 1


def _why_none(result: ScanResult, manifest: Manifest) -> str:
    """Return the cause for shards without a usable image, with the place of the first reject."""
    stats = result.stats
    if not stats.examples:
        unreadable = (report.unreadable for report in result.shards if report.unreadable)
        return next(unreadable, "the shards hold none; name others, or write them again")
    (reason, count), *_ = stats.rejects.most_common(1)
    first = stats.examples[reason]
    return (
        f"all {stats.rejects.total():,} were rejected, {count:,} as {reason}, first "
        f"{redact(manifest.shards[first.shard].uri)}, {first.place}: {first.detail}; `streamssl "
        "shards verify` lists every reason"
    )


@contextmanager
def _scanner(
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
    """Write the JSON report to the screen and to a file, as the options demand."""
    if parsed.json:
        console.out(to_json(fields))
    if parsed.report is not None:
        try:
            write_atomic(parsed.report, to_json(fields, indent=1) + "\n")
        except OSError as error:
            raise_denied(error, parsed.report)
            raise ConfigError(
                f"report={parsed.report} cannot be written ({error.strerror}); name a file in a "
                "folder that exists"
            ) from error


def _counts(result: ScanResult, manifest: Manifest) -> dict[str, Any]:
    stats = result.stats
    return {
        "manifest": manifest.digest,
        "shards": result.num_shards,
        "bytes": result.num_bytes,
        "chunk_bytes": result.chunk_bytes,
        "chunks": result.num_chunks,
        "scanned_chunks": result.scanned_chunks,
        "scanned_bytes": result.scanned_bytes,
        "samples": stats.num_samples,
        "images": stats.num_images,
        "rejected": stats.rejects.total(),
        "reject_reasons": dict(stats.rejects.most_common()),
        "unreadable": [report.uri for report in result.shards if report.unreadable],
    }


def _faults(result: ScanResult, manifest: Manifest) -> dict[str, Any]:
    uris = [redact(shard.uri) for shard in manifest.shards]
    return {
        "first_rejects": {
            reason: {"uri": uris[first.shard], **_place(first)}
            for reason, first in result.stats.examples.items()
        },
        "irregular": [r.uri for r in result.shards if r.irregular_at is not None],
        "walked": [r.uri for r in result.shards if r.needs_walk_at is not None],
        "repeated_keys": sum(report.num_repeated for report in result.shards),
        "scattered_keys": sum(report.num_scattered for report in result.shards),
        "links": sum(report.num_links for report in result.shards),
        "hidden": sum(report.num_hidden for report in result.shards),
        "without_samples": [r.uri for r in result.shards if not r.num_samples],
        "without_end": [r.uri for r in result.shards if not r.has_end],
        "empty": list(map(redact, manifest.empty)),
        "unfinished": list(map(redact, manifest.unfinished)),
        "shard_reports": [_shard_fields(report) for report in result.shards],
    }


def _layout(result: ScanResult, manifest: Manifest, parsed: ScanOptions) -> list[str]:
    """Return what is unusual in the layout, a line each."""
    rules = {shard.names for shard in manifest.shards}
    rule = max(rules, key=lambda names: names.keys == "last_dot")
    layout = result.stats.layout
    return [
        *listing_lines(manifest),
        *layout.lines(rule, parsed.admission),
        *layout.pixels.lines(parsed.admission.sixteen_bit),
        *(label_lines(layout, "") if layout.num_labelled else ()),
    ]


def _print_layout(lines: list[str], console: Console) -> None:
    for line in lines:
        console.print(f"layout: {line}", markup=False)


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
        "hidden": report.num_hidden,
        "has_end": report.has_end,
        "unreadable": report.unreadable,
    }


def _place(reject: Reject) -> dict[str, Any]:
    return {
        "byte": reject.offset,
        "key": reject.key,
        "member": reject.member,
        "detail": reject.detail,
    }


def _print_faults(result: ScanResult, manifest: Manifest, console: Console) -> None:
    stats = result.stats
    for reason, count in stats.rejects.most_common():
        first = stats.examples[reason]
        where = f"{redact(manifest.shards[first.shard].uri)}, {first.place}"
        line = f"  {reason:<16} {count:>8,}   first: {where}: {first.detail}"
        console.print(line, markup=False)
    lines = [line for report in result.shards for line in _shard_faults(report)]
    for line in lines[:_MAX_SHOWN]:
        console.print(line, markup=False)
    if len(lines) > _MAX_SHOWN:
        console.print(f"and {len(lines) - _MAX_SHOWN} more: --report FILE lists them")


def _shard_faults(report: ShardReport) -> Iterator[str]:
    """Yield a line for every fault of a shard as a whole."""
    if report.unreadable is not None:
        yield f"unreadable: {report.unreadable}"
    elif not report.num_samples:
        yield f"without samples: {report.uri}: a run finds nothing in it; write it again"
    if not report.has_end:
        yield (
            f"no end: {report.uri}: the two blocks of zeros that end a tar are missing, so its "
            "writer was interrupted and samples may be missing; write it again"
        )
    if report.irregular_at is not None:
        yield (
            f"irregular: {report.uri}, byte {report.irregular_at}: a member contains data "
            "that look like samples; a run detects this and reads the shard from byte 0: pack it "
            "again"
        )
    elif report.needs_walk_at is not None:
        yield (
            f"slow: {report.uri}, byte {report.needs_walk_at}: a member contains a tar, or is too "
            "large to scan; a run reads the shard from byte 0"
        )
    if report.num_scattered:
        yield (
            f"scattered: {report.uri}, byte {report.first_scattered}: {report.num_scattered:,} "
            "samples have the key of an earlier one and other members; the members of a sample "
            "must be adjacent: pack it again"
        )
    if report.num_links:
        yield (
            f"links: {report.uri}: {report.num_links:,} links have no bytes of their own and are "
            "no samples; a shard must hold the files: pack it again with `tar --dereference "
            "--hard-dereference`"
        )


def _sizes(result: ScanResult) -> dict[str, Any]:
    stats = result.stats
    per_shard = [report.num_samples for report in result.shards]
    decoding = stats.num_decoded / stats.decode_seconds if stats.decode_seconds else 0
    reading = result.scanned_bytes / result.read_seconds if result.read_seconds else 0
    return {
        "formats": dict(stats.formats.most_common()),
        "bands": dict(stats.layout.pixels.bands.most_common()),
        "bits": dict(stats.layout.pixels.bits.most_common()),
        "bits_in_use": dict(stats.layout.pixels.bits_in_use.most_common()),
        "members": dict(stats.extensions.most_common()),
        "labels": {"images": stats.layout.num_labelled, "different": len(stats.layout.labels)},
        "megapixels": round(stats.num_pixels / 1e6, 1),
        "shorter_side": stats.shorter_sides.percentiles(_PERCENTS),
        "longer_side": stats.longer_sides.percentiles(_PERCENTS),
        "width_to_height": stats.aspect_ratios.percentiles(_PERCENTS),
        "image_bytes": stats.sizes.percentiles(_PERCENTS),
        "mean_image_bytes": round(stats.image_bytes / max(1, stats.num_images)),
        "samples_per_shard": [min(per_shard), max(per_shard)] if per_shard else None,
        "estimated_samples": _estimated_samples(result),
        "decoded_per_second_per_core": round(decoding),
        "bytes_per_second_per_reader": round(reading),
    }


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int | float) else json.dumps(value)


def _estimated_samples(result: ScanResult) -> int:
    return round(result.stats.num_samples * result.num_bytes / max(1, result.scanned_bytes))
