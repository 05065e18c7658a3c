"""Which data a run reads: shard patterns, weights, a subset list, reports of irregular shards."""

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from shards.crops.chunk_cropper import check_subset
from shards.errors import ConfigError
from shards.records import Cursor
from shards.redaction import redact
from shards.samples.subset import Subset, load_subset
from shards.stores.range_reader import RangeReader
from shards.stream.journal import Journal
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.mixture import Weights, parse_weights
from shards.stream.order import Order


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What `--data`, `--weights`, `--subset` and `--verified` say.

    Without weights all patterns together are one source; with them each is a source of its own.
    """

    patterns: tuple[str, ...]
    weights: tuple[str, ...] = ()
    subset: str | None = None
    verified: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ConfigError("no shards were named; a run needs some: give --data PATTERN")
        if self.weights and len(self.weights) != len(self.patterns):
            raise ConfigError(
                f"{len(self.weights)} weights for {len(self.patterns)} patterns of --data; each "
                "needs one: give --weights as many numbers, or none to take all shards alike"
            )
        if len(self.weights) == 1:
            raise ConfigError(
                "one weight for one pattern of --data; there is nothing to weigh it against: name "
                "another pattern, or leave --weights out"
            )
        self.parsed_weights()

    def parsed_weights(self) -> Weights | None:
        return parse_weights(self.weights) if self.weights else None


@dataclass(frozen=True, slots=True)
class Data:
    """The data, opened: its shards, which of their samples, and which shards must be walked."""

    config: DataConfig
    manifest: Manifest
    subset: Subset | None
    irregular: tuple[int, ...]

    @property
    def subset_digest(self) -> str:
        """Of the subset list; empty without one."""
        return self.subset.digest if self.subset else ""

    @property
    def num_samples(self) -> int:
        """About how many samples there are, to two digits, by the bytes of the shards and of a few
        samples of each source; no more than a subset list has."""
        manifest = self.manifest
        by_source = manifest.sample_bytes_of or (manifest.sample_bytes,)
        each = [by_source[min(shard.source, len(by_source) - 1)] for shard in manifest.shards]
        count = sum(
            shard.num_bytes / size for shard, size in zip(manifest.shards, each, strict=True)
        )
        about = int(float(f"{max(1.0, count):.1e}"))
        return about if self.subset is None else min(about, len(self.subset))


def open_data(config: DataConfig, reader: RangeReader) -> Data:
    """List and look at what was named. Raises UserError, ShardUnreadable."""
    subset = load_subset(config.subset) if config.subset else None
    manifest = open_manifest(config.patterns, reader, separate=bool(config.weights))
    if subset is not None:
        check_subset(subset, manifest.shards, reader)
    irregular = {row for path in config.verified for row in read_verified(path, manifest)}
    return Data(config, manifest, subset, tuple(sorted(irregular)))


def read_verified(path: Path, manifest: Manifest) -> set[int]:
    """Rows of the shards that are to be walked by a report of `streamssl shards verify`.

    The report is about all shards of the run, or about those of one of its sources.
    """
    try:
        fields = json.loads(path.read_text())
        # A run learns of itself to walk those that are only slow to read otherwise.
        named = [*fields["irregular"], *fields.get("walked", ())]
        digest, uris = str(fields["manifest"]), {str(uri) for uri in named}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--verified {path} is no report ({type(error).__name__}: {error}); write one with "
            "`streamssl shards verify PATTERN --report report.json`"
        ) from error
    rows = _rows_by_digest(manifest).get(digest)
    if rows is None:
        raise ConfigError(
            f"--verified {path} is about other shards (manifest {digest}, now {manifest.digest}); "
            "verify those of --data, or leave it out"
        )
    return {row for row in rows if redact(manifest.shards[row].uri) in uris}


def _rows_by_digest(manifest: Manifest) -> dict[str, list[int]]:
    """The rows of all shards, and of those of each source, by what a manifest of them is called."""
    found = {manifest.digest: list(range(len(manifest.shards)))}
    for source in range(manifest.shards[-1].source + 1):
        rows = [row for row, shard in enumerate(manifest.shards) if shard.source == source]
        shards = tuple(replace(manifest.shards[row], source=0) for row in rows)
        found[Manifest(shards, manifest.sample_bytes).digest] = rows
    return found


def open_journal(
    path: Path, order: Order, data: Data, cursor: Cursor | None
) -> tuple[Journal, list[str], int | None]:
    """The journal of a run that goes on at `cursor`, with what was asked for now written into it.

    Besides it: what changes by that, in words, and from which block on, if anything does.
    """
    journal = Journal.read(path, order.manifest, order.digest, anew=cursor is None)
    since = 0 if cursor is None else cursor.block + 1
    changes = []
    weights = data.config.parsed_weights()
    if weights is not None and journal.add_weights(weights, since):
        shares = " : ".join(f"{float(weight):g}" for weight in weights)
        chunk_bytes = order.config.chunk_bytes
        estimates = data.manifest.sample_shares(chunk_bytes, list(map(float, weights)))
        samples = " : ".join(f"{share:.2g}" for share in estimates)
        changes.append(f"sources are mixed {shares} by chunks, about {samples} by samples")
    new = [row for row in data.irregular if journal.add_irregular(row, since)]
    if new:
        changes.append(f"{len(new)} irregular shards are walked")
    return journal, changes, since if changes else None


def write_data(config: DataConfig, path: Path) -> None:
    """Save what was named, so that one can see it and batches can be made again. No secrets."""
    fields: dict[str, Any] = {"data": [redact(pattern) for pattern in config.patterns]}
    if config.weights:
        fields["weights"] = list(config.weights)
    if config.subset:
        file, mark, column = config.subset.partition("::")
        fields["subset"] = f"{Path(file).expanduser().resolve()}{mark}{column}"
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(tomli_w.dumps(fields))
    draft.replace(path)


def read_data(path: Path) -> DataConfig:
    """What `write_data` saved. Raises ConfigError."""
    try:
        fields = tomllib.loads(path.read_text())
        return DataConfig(
            patterns=tuple(fields["data"]),
            weights=tuple(fields.get("weights", ())),
            subset=fields.get("subset"),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); it is part of the folder of a run of this version: "
            "name such a folder"
        ) from error
