"""Data of a run: shard patterns, weights, a subset list, reports of irregular shards."""

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from shards.access import raise_denied
from shards.crops.chunk_cropper import check_subset
from shards.errors import ConfigError
from shards.files import write_atomic
from shards.member_names import Keys
from shards.records import Cursor
from shards.redaction import redact
from shards.samples.class_numbers import ClassNumbers
from shards.samples.subset import Subset
from shards.samples.subset_file import load_subset
from shards.stores.range_reader import RangeReader
from shards.stream.journal import Journal
from shards.stream.manifest import Manifest
from shards.stream.manifest_file import read_name_rules
from shards.stream.manifest_listing import open_manifest
from shards.stream.mixture import Weights, parse_weights
from shards.stream.order import Order
from shards.validation import explain_invalid
from streamssl.runs.file_names import MANIFEST


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Values of `--data`, `--weights`, `--subset`, `--verified` and `--keys`.

    Without weights all patterns together are one source; with weights each pattern is a source.
    """

    patterns: tuple[str, ...]
    weights: tuple[str, ...] = ()
    subset: str | None = None
    verified: tuple[Path, ...] = ()
    keys: Keys = "auto"

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ConfigError("no shards are named; a run needs at least one: give --data PATTERN")
        if self.weights and len(self.weights) != len(self.patterns):
            raise ConfigError(
                f"{len(self.weights)} weights for {len(self.patterns)} patterns of --data; each "
                "needs one: give --weights as many numbers, or none to take all shards alike"
            )
        if len(self.weights) == 1:
            raise ConfigError(
                "one weight for one pattern of --data; a mixture needs at least two sources: name "
                "another pattern, or leave --weights out"
            )
        self.parsed_weights()

    def parsed_weights(self) -> Weights | None:
        return parse_weights(self.weights) if self.weights else None


@dataclass(frozen=True, slots=True)
class OpenedData:
    """Shards, the selected samples, and the irregular shards, which must be read from byte 0.

    `class_numbers` are those of a run with labels, if the shards have names of classes.
    """

    config: DataConfig
    manifest: Manifest
    subset: Subset | None
    irregular: tuple[int, ...]
    class_numbers: ClassNumbers | None = None

    @property
    def subset_digest(self) -> str:
        """Digest of the subset list; empty without one."""
        return self.subset.digest if self.subset else ""

    @property
    def num_samples(self) -> int:
        """Estimated number of samples, to two digits, at most the length of the subset list.

        It is estimated from the bytes of the shards and of a few samples of each source.
        """
        manifest = self.manifest
        by_source = manifest.sample_bytes_of or (manifest.sample_bytes,)
        each = [by_source[min(shard.source, len(by_source) - 1)] for shard in manifest.shards]
        count = sum(
            shard.num_bytes / size for shard, size in zip(manifest.shards, each, strict=True)
        )
        about = int(float(f"{max(1.0, count):.1e}"))
        return about if self.subset is None else min(about, len(self.subset))


def open_data(config: DataConfig, reader: RangeReader, out: Path | None = None) -> OpenedData:
    """List the shards and read the first samples.

    A run in the folder `out` goes on with its rule of keys. Raises UserError, ShardUnreadable.
    """
    subset = load_subset(config.subset) if config.subset else None
    manifest = open_manifest(
        config.patterns,
        reader,
        separate=bool(config.weights),
        keys=config.keys,
        names=None if out is None else read_name_rules(out / MANIFEST),
    )
    if subset is not None:
        check_subset(subset, manifest.shards, reader)
    irregular = {row for path in config.verified for row in read_verified(path, manifest)}
    return OpenedData(config, manifest, subset, tuple(sorted(irregular)))


def read_verified(path: Path, manifest: Manifest) -> set[int]:
    """Return the rows of the irregular shards in a report of `streamssl shards verify`.

    The report must cover all shards of the run, or all shards of one source. Raises ConfigError.
    """
    try:
        fields = json.loads(path.read_text())
        # Older reports have no `walked`: a run detects those shards, too, but later.
        named = [*fields["irregular"], *fields.get("walked", ())]
        digest, uris = str(fields["manifest"]), {str(uri) for uri in named}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise_denied(error, path)
        raise ConfigError(
            f"--verified {path} is not a report ({type(error).__name__}: {error}); write one with "
            "`streamssl shards verify PATTERN --report report.json`"
        ) from error
    rows = _rows_by_digest(manifest).get(digest)
    if rows is None:
        raise ConfigError(
            f"--verified {path} describes other shards (manifest {digest}, now {manifest.digest}); "
            "verify those of --data, or leave it out"
        )
    return {row for row in rows if redact(manifest.shards[row].uri) in uris}


def _rows_by_digest(manifest: Manifest) -> dict[str, list[int]]:
    """Return the rows of all shards and of each source, by the digest of their manifest."""
    found = {manifest.digest: list(range(len(manifest.shards)))}
    for source in range(manifest.shards[-1].source + 1):
        rows = [row for row, shard in enumerate(manifest.shards) if shard.source == source]
        shards = tuple(replace(manifest.shards[row], source=0) for row in rows)
        found[Manifest(shards, manifest.sample_bytes).digest] = rows
    return found


def open_journal(
    path: Path, order: Order, data: OpenedData, cursor: Cursor | None
) -> tuple[Journal, list[str], int | None]:
    """Return the journal of a run that resumes at `cursor`, with today's weights and shards.

    Also return the changes in words, and the first changed block, None if nothing changes.
    """
    journal = Journal.read(path, order.manifest, order.digest, replace_other=cursor is None)
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
        changes.append(f"{len(new)} irregular shards are read from byte 0")
    return journal, changes, since if changes else None


def write_data(config: DataConfig, path: Path) -> None:
    """Save the data of a run, without secrets, so that its batches can be replayed."""
    fields: dict[str, Any] = {"data": [redact(pattern) for pattern in config.patterns]}
    if config.weights:
        fields["weights"] = list(config.weights)
    if config.keys != "auto":
        fields["keys"] = config.keys
    if config.subset:
        file, mark, column = config.subset.partition("::")
        fields["subset"] = f"{Path(file).expanduser().resolve()}{mark}{column}"
    write_atomic(path, tomli_w.dumps(fields))


def read_data(path: Path) -> DataConfig:
    """Return the data that `write_data` saved. Raises ConfigError."""
    try:
        fields = tomllib.loads(path.read_text())
        weights = [str(weight) for weight in fields.get("weights", ())]
        known = {"patterns": fields["data"], "weights": weights}
        known |= {name: fields[name] for name in ("subset", "keys") if name in fields}
        return TypeAdapter(DataConfig).validate_python(known)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise_denied(error, path)
        cause = str(error)
        if isinstance(error, ValidationError):  # its text has several lines
            cause = explain_invalid(error)
        raise ConfigError(
            f"{path} cannot be read ({cause}); a run of this version writes it: name the folder of "
            "such a run"
        ) from error
