"""The manifest as a Parquet file in the folder of a run."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.access import raise_denied
from shards.errors import ManifestError
from shards.files import write_atomic
from shards.member_names import NameRule
from shards.records import ShardInfo
from shards.redaction import redact
from shards.stream.manifest import Manifest

_METADATA = b"streamssl"
_COLUMNS = ("uri", "num_bytes", "version", "source", "whole")  # in the order of ShardInfo


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Save as Parquet, one row for each shard; addresses are redacted."""
    shards = manifest.shards
    uris = [redact(shard.uri) for shard in shards]
    table = pa.table(
        {
            "source": pa.array([shard.source for shard in shards], pa.int32()),
            "uri": uris,
            "num_bytes": pa.array([shard.num_bytes for shard in shards], pa.int64()),
            "version": [shard.version for shard in shards],
            "whole": pa.array([shard.whole for shard in shards], pa.bool_()),
            "keys": [shard.names.keys for shard in shards],
            "keep_hidden": pa.array([shard.names.keep_hidden for shard in shards], pa.bool_()),
        }
    )
    fields = {
        "digest": manifest.digest,
        "sample_bytes": manifest.sample_bytes,
        "patterns": [redact(pattern) for pattern in manifest.patterns],
        "redacted": any(uri != shard.uri for uri, shard in zip(uris, shards, strict=True)),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(fields)}), buffer)
    write_atomic(path, buffer.getvalue())


def read_manifest(path: Path) -> Manifest:
    """Read a manifest that `write_manifest` saved. Raises ManifestError.

    Signatures of addresses are never saved, so signed shards must be listed again.
    """
    try:
        table = pq.read_table(path)
        fields = json.loads((table.schema.metadata or {})[_METADATA])
        rows = zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)
        shards = tuple(
            replace(ShardInfo(*row), names=names)
            for row, names in zip(rows, _names(table), strict=True)
        )
        manifest = Manifest(shards, fields["sample_bytes"], tuple(fields["patterns"]))
        redacted, digest = fields["redacted"], fields["digest"]
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise_denied(error, path)
        raise ManifestError(
            f"{path} cannot be read as a manifest ({error}); give the folder of a run of this "
            "version, or name the shards with --data"
        ) from error
    if redacted or manifest.digest != digest:
        raise ManifestError(
            f"{path} lists shards without the signatures of their addresses, which are never "
            f"saved; name them again: --data {' '.join(manifest.patterns) or 'PATTERN'}"
        )
    return manifest


def read_name_rules(path: Path) -> dict[int, NameRule]:
    """Return the name rule of each source in a saved manifest; empty if there is none."""
    try:
        table = pq.read_table(path)
        return dict(zip(table["source"].to_pylist(), _names(table), strict=True))
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise_denied(error, path)
        return {}


def _names(table: pa.Table) -> list[NameRule]:
    """Return the name rule of each shard; files of version 0.2 have none, and kept hidden files."""
    if "keys" not in table.column_names:
        return [NameRule(keep_hidden=True)] * table.num_rows
    columns = (table[name].to_pylist() for name in ("keys", "keep_hidden"))
    return [NameRule(*row) for row in zip(*columns, strict=True)]
