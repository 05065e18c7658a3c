"""`streamssl shards view`: a contact sheet of samples, or of the crops of one batch of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from shards.admission import AdmissionConfig
from shards.errors import ConfigError
from shards.manifest import open_manifest
from shards.redaction import redact
from shards.sheet import Sheet, check_suffix, write_sheet
from shards.sources import RangeReader
from shards.view import MOST_TILES, draw_samples
from streamssl.parsing import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Write a contact sheet: samples drawn from anywhere in the data, or a batch of a run."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder, glob, brace pattern or single tar; with --run, what the run was trained on."""
    out: Path
    """The sheet: a file that ends in .html or .png."""
    num: int = 64
    """How many samples are shown at most."""
    seed: int = 0
    """Which samples are drawn; another seed shows others."""
    run: Path | None = None
    """A run folder: show the crops of one of its batches, made again from ids."""
    batch: int | None = None
    """Which batch of --run: the number of the step that was trained on it."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MOST_TILES:
            raise ConfigError(
                f"num={self.num}; a sheet shows from 1 to {MOST_TILES} samples: change --num"
            )
        if (self.run is None) != (self.batch is None):
            given, missing = ("--batch", "--run") if self.run is None else ("--run", "--batch")
            raise ConfigError(
                f"{given} is given without {missing}; a batch is shown by both: add {missing}, or "
                f"leave {given} out to see samples of the data"
            )
        check_suffix(self.out)


def view(arguments: list[str], console: Console) -> int:
    """Write a contact sheet of samples, or of the crops of a batch."""
    parsed = parse(View, "streamssl shards view", arguments)
    sheet = _samples(parsed)
    write_sheet(sheet, parsed.out)
    console.print(f"{sheet.heading}: {len(sheet.tiles)} tiles in {parsed.out}")
    return 0


def _samples(parsed: View) -> Sheet:
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader)
    tiles = list(draw_samples(manifest, reader, parsed.admission, num=parsed.num, seed=parsed.seed))
    refused = sum(bool(tile.reason) for tile in tiles)
    plural = "s" if len(manifest.shards) > 1 else ""
    shards = f"{len(manifest.shards):,} shard{plural}, {manifest.num_bytes:,} bytes"
    facts = (shards, f"{len(tiles)} samples drawn with seed {parsed.seed}, {refused} rejected")
    return Sheet(redact(parsed.data), tiles, facts)
