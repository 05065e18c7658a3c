"""`streamssl shards pack`: pictures become shards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from shards.entries import entries_from_folder, entries_from_list
from shards.pack import PackConfig, pack
from streamssl.parsing import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Make shards from a folder of pictures (sub-folders are labels) or a text file of paths."""

    source: Annotated[Path, tyro.conf.Positional]
    """A folder of pictures, or a text file with one path a line."""
    out: Annotated[Path, tyro.conf.Positional]
    """A new or empty folder for the shards."""
    labels: Literal["auto", "none"] = "auto"
    """auto: sub-folders are classes; none: no labels."""
    pack: Annotated[PackConfig, tyro.conf.arg(name="")] = field(default_factory=PackConfig)


def pack_shards(arguments: list[str], console: Console) -> int:
    """Make shards from a folder of pictures or a list of files."""
    parsed = parse(Pack, "streamssl shards pack", arguments)
    if parsed.source.is_file():
        source = entries_from_list(parsed.source)
    else:
        source = entries_from_folder(parsed.source, parsed.labels)
    report = pack(source, parsed.out, parsed.pack)
    done = "are there already, made from the same files" if report.reused else "written"
    console.print(
        f"{report.num_samples:,} samples in {report.num_shards} shards ({report.num_bytes:,} "
        f"bytes) in {report.out}: {done}"
    )
    for reason, count in sorted(report.skipped.items()):
        console.print(f"skipped {count:,}: {reason}")
    return 0
