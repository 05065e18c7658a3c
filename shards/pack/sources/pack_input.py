"""Source of a pack from its name: a folder, a list, a Parquet file, or shards."""

import glob
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from braceexpand import braceexpand

from shards.errors import ConfigError, UserError
from shards.member_names import Keys, is_hidden
from shards.pack.entry_plan import ImagesSource
from shards.pack.image_entries import LabelMode, entries_from_list, is_far, is_image
from shards.pack.pack_plan import PackSource
from shards.pack.sources.class_folders import describe_classes
from shards.pack.sources.folder_entries import entries_from_folder
from shards.pack.sources.image_columns import image_column
from shards.pack.sources.image_metadata import METADATA_NAMES
from shards.pack.sources.image_table import ImageTable, open_image_table
from shards.pack.sources.join import Join
from shards.pack.sources.parquet_files import find_table_file, read_schema
from shards.pack.sources.shards_input import open_shards
from shards.pack.store_lookup import StoreLookup
from shards.pack.table_entries import TableColumns, entries_from_parquet
from shards.redaction import redact

_COMMAND: Final = ("streamssl", "shards", "pack")
SourceKind = Literal["auto", "folder", "list", "parquet", "shards"]

_SHARD: Final = re.compile(r"\.(tar|tar\.gz|tgz|tar\.zst)$", re.IGNORECASE)
_PATTERN: Final = re.compile(r"[*{\[]")
# 'data/train-00000-of-00002.parquet': the file names of Hugging Face sets.
_SPLIT_TABLE: Final = re.compile(r"(?:^|/)(train|test|val|valid|validation|dev|eval)-[^/]*$")


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
    if kind == "folder":
        named = {"label_column": columns.label, "caption_column": columns.caption}
        return entries_from_folder(name, labels, **named)
    source: ImagesSource | ImageTable
    if kind == "parquet":
        source, origin = _open_tables(name, columns, labels), "from the table"
    else:
        source, origin = entries_from_list(name, labels), "from the list"
    if source.class_names:
        line = describe_classes(source.class_names, origin)
        source = replace(source, notes=(*source.notes, line))
    if labels == "required" and not _has_labels(source):
        raise UserError(
            f"--labels required, but {source.name} has no labels; a list has one after each path, "
            "a table has a column of them: name it with --columns.label, or leave --labels out"
        )
    return source


def _has_labels(source: ImagesSource | ImageTable) -> bool:
    if isinstance(source, ImageTable):
        return source.labels is not None and bool((source.labels >= 0).any())
    return any(entry.label is not None for entry in source.entries[:1])


def _open_tables(name: str, columns: TableColumns, labels: LabelMode) -> ImagesSource | ImageTable:
    places = _parquet_files(name)
    files = [find_table_file(place) for place in places]
    image = image_column(read_schema(files[0]), columns, redact(places[0]))
    if image is None:
        return entries_from_parquet(places, columns, labels)
    return open_image_table(files, columns, image, labels)


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
    has_shard = has_image = has_table = False
    for file in files:
        if is_hidden(file[len(name) :]):
            continue
        has_shard = has_shard or bool(_SHARD.search(file))
        has_image = has_image or is_image(file)
        has_table = has_table or _is_table(file)
    if has_shard and has_image:
        raise ConfigError(
            f"{redact(name)} holds images and shards; one kind is packed at a time: give --kind "
            "folder or --kind shards"
        )
    if has_shard:
        return "shards"
    return "parquet" if has_table and not has_image else "folder"


def _is_table(file: str) -> bool:
    base = redact(file).rpartition("/")[2].lower()
    return base.endswith(".parquet") and base not in METADATA_NAMES


def _parquet_files(name: str) -> list[str]:
    """Return one file, or the sorted files of a glob or a folder. Raises UserError for splits."""
    if is_far(name):
        found = _far_tables(name)
    elif (folder := Path(name).expanduser()).is_dir():
        below = (str(path) for path in folder.rglob("*.parquet"))
        found = [path for path in below if _is_table(path) and not is_hidden(path)]
    elif not _PATTERN.search(name) or folder.exists():
        found = [name]
    else:
        patterns = braceexpand(str(folder)) if "{" in name else [str(folder)]
        found = [path for pattern in patterns for path in glob.glob(pattern, recursive=True)]
    found.sort()
    if not found:
        raise ConfigError(
            f"no file matches {name!r}; at least one Parquet file is needed; check the path"
        )
    splits = sorted({match[1] for file in found if (match := _SPLIT_TABLE.search(file))})
    if len(splits) > 1:
        place = redact(os.path.dirname(found[0]))
        commands = " and ".join(
            f"`{shlex.join([*_COMMAND, f'{place}/{split}-*.parquet', f'OUT-{split}'])}`"
            for split in splits
        )
        raise ConfigError(
            f"{redact(name)} holds the splits {', '.join(splits)}; images of different splits must "
            f"not be mixed in one set: pack them apart with {commands}"
        )
    return found


def _far_tables(name: str) -> list[str]:
    lookup = StoreLookup()
    if _PATTERN.search(redact(name)):
        return [file.uri for file in lookup.matching(name)]
    files = None if redact(name).lower().endswith(".parquet") else lookup.files_below(name)
    return [name] if files is None else [file.uri for file in files if _is_table(file.uri)]
