"""`streamssl shards view`: contact sheet of samples, or of the crops of one batch of a run."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from shards.errors import ConfigError
from shards.inspect.contact_sheet import ContactSheet, check_suffix, write_sheet
from shards.inspect.sample_view import MAX_TILES, batch_tiles, draw_samples
from shards.member_names import Keys
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from streamssl.commands.argument_parser import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Write a contact sheet of samples from all of the data, or of a batch of a run."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders, globs, brace patterns or single tars. Give them with --run only if the run
    has signed addresses, which are not saved."""
    keys: Keys = "auto"
    """Rule of sample keys: first_dot as in WebDataset, or last_dot for file names with dots; auto
    takes what the shards show."""
    out: Path
    """The sheet: a file that ends in .html or .png."""
    num: int = 64
    """Maximum number of samples on the sheet."""
    seed: int = 0
    """Seed of the draw; another seed shows other samples."""
    run: Path | None = None
    """Run folder: show the crops of one of its batches, made again from ids."""
    batch: int | None = None
    """Batch of --run: number of the step that was trained on it."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MAX_TILES:
            raise ConfigError(
                f"num={self.num}; a sheet shows from 1 to {MAX_TILES} samples: change --num"
            )
        if (self.run is None) != (self.batch is None):
            given, missing = ("--batch", "--run") if self.run is None else ("--run", "--batch")
            raise ConfigError(
                f"{given} is given without {missing}; a batch needs both: add {missing}, or "
                f"leave {given} out to see samples of the data"
            )
        if not self.data and self.run is None:
            raise ConfigError(
                "no data was named; a sheet shows shards or a batch: name shards, or give --run "
                "and --batch"
            )
        check_suffix(self.out)


def view(arguments: list[str], console: Console) -> int:
    """Write a contact sheet of samples, or of the crops of a batch."""
    parsed = parse(View, "streamssl shards view", arguments)
    if parsed.run is None or parsed.batch is None:
        sheet = _samples(parsed)
    else:
        sheet = _batch(parsed, parsed.run, parsed.batch)
    write_sheet(sheet, parsed.out)
    console.print(f"{sheet.heading}: {'; '.join(sheet.facts)}; {parsed.out}")
    return 0


def _samples(parsed: View) -> ContactSheet:
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader, keys=parsed.keys)
    tiles = list(draw_samples(manifest, reader, parsed.admission, num=parsed.num, seed=parsed.seed))
    refused = sum(bool(tile.reason) for tile in tiles)
    plural = "s" if len(manifest.shards) > 1 else ""
    facts = (
        f"{len(manifest.shards):,} shard{plural}, {manifest.num_bytes:,} bytes",
        f"{len(tiles)} samples drawn with seed {parsed.seed}, {refused} rejected",
    )
    return ContactSheet(" ".join(map(redact, parsed.data)), tiles, facts)


def _batch(parsed: View, run: Path, step: int) -> ContactSheet:
    # Only a batch needs torch, because its crops are made again, and the files of a run.
    from shards.stream.manifest_file import read_manifest
    from streamssl.pretrain.replay_batch import open_batch
    from streamssl.runs.file_names import MANIFEST
    from streamssl.runs.run_data import open_data, read_data

    reader = RangeReader()
    named = replace(read_data(run / "data.toml"), patterns=parsed.data) if parsed.data else None
    batch = open_batch(run, step, reader, named)  # raises if its digest is not the logged one
    manifest = open_data(named, reader, run).manifest if named else read_manifest(run / MANIFEST)
    tiles = list(batch_tiles(batch, manifest, reader, parsed.num))
    rejects = Counter(reject.reason for reject in batch.rejects)
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.most_common())
    facts = (
        f"crops of {len(tiles)} of {len(batch)} samples",
        f"digest {batch.digest}, the same as in metrics.jsonl",
        f"rejected before and between them: {reasons or 'none'}",
    )
    return ContactSheet(f"{run}, batch {step}", tiles, facts, quality="exact")
