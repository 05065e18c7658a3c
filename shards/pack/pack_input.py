"""Source of a pack from its name: a folder, a list, a Parquet file, or shards."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from shards.errors import ConfigError
from shards.pack.image_entries import (
    LabelMode,
    entries_from_folder,
    entries_from_list,
    is_far,
    is_image,
)
from shards.pack.join import Join
from shards.pack.pack_plan import PackSource
from shards.pack.shards_input import open_shards
from shards.pack.store_lookup import StoreLookup
from shards.pack.table_entries import TableColumns, entries_from_parquet
from shards.redaction import redact
from shards.stream.manifest_listing import Keys

SourceKind = Literal["auto", "folder", "list", "parquet", "shards"]

_SHARD: Final = re.compile(r"\.(tar|tar\.gz|tgz|tar\.zst)$", re.IGNORECASE)
_PATTERN: Final = re.compile(r"[*{\[]")


def open_source(
    name: str,
    kind: SourceKind,
    labels: LabelMode,
    columns: TableColumns,
    subset: str | None,
    *,
    keys: Keys = "auto",
    join: Join = "auto",
) -> PackSource:
    """Return the source that `name` refers to. Raises UserError or ShardUnreadable."""
    if kind == "auto":
        kind = _detect_kind(name)
    if subset is not None and kind != "shards":
        raise ConfigError(
            f"subset={subset!r} with a {kind} of images; a subset list chooses from shards: list "
            "the wanted images instead"
        )
    if kind == "shards":
        return open_shards(name, labels, subset, keys, join)
    if kind == "parquet":
        return entries_from_parquet(_parquet_files(name), columns, labels)
    return entries_from_list(name, labels) if kind == "list" else entries_from_folder(name, labels)


def check_apart(source: str, out: str) -> None:
    """Raise ConfigError if the shards would be written into the folder that is packed."""
    if is_far(source) != is_far(out):
        return
    if is_far(source):
        inside = f"{out.rstrip('/')}/".startswith(f"{source.rstrip('/')}/")
    else:
        folder, place = (Path(name).expanduser().resolve() for name in (source, out))
        inside = folder.is_dir() and place.is_relative_to(folder)
    if inside:
        raise ConfigError(
            f"{redact(out)} is inside {redact(source)}; the next start would pack the "
            "shards too: give a place outside of it"
        )


def _detect_kind(name: str) -> SourceKind:
    """Return the kind by name, or by the files of a folder. A missing path counts as a folder."""
    folder = _files_of_folder(name)
    if folder is not None:
        return _kind_of_folder(name, folder)
    shown = redact(name).lower()
    if shown.endswith(".parquet"):
        return "parquet"
    if _SHARD.search(shown) or _PATTERN.search(shown):
        return "shards"
    return "list" if is_far(name) or Path(name).expanduser().is_file() else "folder"


def _files_of_folder(name: str) -> Iterable[str] | None:
    if not is_far(name):
        folder = Path(name).expanduser()
        return map(str, folder.rglob("*")) if folder.is_dir() else None
    if _SHARD.search(redact(name)) or _PATTERN.search(redact(name)):
        return None
    files = StoreLookup().files_below(name)
    return None if files is None else [file.uri for file in files]


def _kind_of_folder(name: str, files: Iterable[str]) -> SourceKind:
    has_shard = has_image = False
    for file in files:
        has_shard = has_shard or bool(_SHARD.search(file))
        has_image = has_image or is_image(file)
    if has_shard and has_image:
        raise ConfigError(
            f"{redact(name)} holds images and shards; one kind is packed at a time: give --kind "
            "folder or --kind shards"
        )
    return "shards" if has_shard else "folder"


def _parquet_files(name: str) -> list[str]:
    """Return one file, or the sorted files of a local glob."""
    if is_far(name) or not _PATTERN.search(name) or Path(name).expanduser().exists():
        return [name]
    pattern = Path(name).expanduser()
    found = sorted(map(str, Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))))
    if not found:
        raise ConfigError(
            f"no file matches {name!r}; at least one Parquet file is needed; check the path"
        )
    return found
