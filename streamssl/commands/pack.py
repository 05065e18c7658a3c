"""`streamssl shards pack`: write images, or other shards, as shards."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from shards.errors import ConfigError
from shards.member_names import Keys
from shards.pack.image_entries import LabelMode
from shards.pack.pack import PackConfig, PackReport, pack
from shards.pack.sources.join import Join
from shards.pack.sources.pack_input import SourceKind, check_apart, open_source
from shards.pack.table_entries import TableColumns
from shards.samples.admission_config import AdmissionConfig
from shards.stores.image_download import DownloadConfig
from streamssl.commands.argument_parser import parse
from streamssl.runs.pack_progress import show_packing


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Make shards from images, or from other shards. The same command resumes a stopped pack."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder of images, a text file with a path or an address a line, a Parquet file with a
    column of them, or shards; on this machine or in any store."""
    out: Annotated[str, tyro.conf.Positional]
    """A new or empty folder for the shards, or an address such as s3://bucket/prefix."""
    kind: SourceKind = "auto"
    """Kind of SOURCE; auto: detected from its name or its files."""
    labels: LabelMode = "auto"
    """auto: labels of .cls files, of metadata or of a table, or else the folders that hold the
    images are classes; required: the same, and refused without any; none: no labels."""
    keys: Keys = "auto"
    """For shards: rule of sample keys, first_dot as in WebDataset, or last_dot for file names with
    dots; auto takes what the shards show."""
    join: Join = "auto"
    """For shards: join the members of a key that are not adjacent into one sample; auto: if the
    shards show such members."""
    columns: TableColumns = field(default_factory=TableColumns)
    subset: str | None = None
    """For shards: a .parquet, .txt or .npy file of keys or uids; only these samples are packed."""
    admit: bool = False
    """Leave out samples that a run with these --admission settings rejects before decoding;
    otherwise all readable samples are packed."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)
    workers: int | None = None
    """Number of worker processes; None: by the amount of work, at most one for each core."""
    pack: Annotated[PackConfig, tyro.conf.arg(name="")] = field(default_factory=PackConfig)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers={self.workers}; it must be at least 1: leave it out")


def pack_shards(arguments: list[str], console: Console) -> int:
    """Make shards from images, lists of addresses, or other shards."""
    parsed = parse(Pack, "streamssl shards pack", arguments)
    check_apart(parsed.source, parsed.out)
    source = open_source(
        parsed.source,
        parsed.kind,
        parsed.labels,
        parsed.columns,
        parsed.subset,
        keys=parsed.keys,
        join=parsed.join,
    )
    with show_packing(console) as progress:
        report = pack(
            source,
            parsed.out,
            parsed.pack,
            download=parsed.download,
            admission=parsed.admission if parsed.admit else None,
            num_workers=parsed.workers,
            progress=progress,
        )
    for line in _lines(report):
        console.print(line, markup=False)
    return 0


def _lines(report: PackReport) -> Iterator[str]:
    done = "written"
    if report.reused:
        done = "exist already, made from the same files"
    elif report.num_found:
        done = f"written, {report.num_found} of the shards by an earlier start"
    yield (
        f"{report.num_samples:,} samples in {report.num_shards} shards ({report.num_bytes:,} "
        f"bytes) in {report.out}: {done}"
    )
    if report.num_unselected:
        yield f"{report.num_unselected:,} samples are not in the subset list"
    if report.num_renamed:
        yield f"{report.num_renamed:,} samples have a new key: their shard had theirs already"
    if report.num_hidden:
        yield f"{report.num_hidden:,} hidden files, such as .DS_Store, are left out"
    for reason, count in sorted(report.skipped.items()):
        yield f"skipped {count:,}: {reason}"
