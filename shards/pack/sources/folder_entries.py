"""Source of the images below a folder, with their side-cars, metadata and labels."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from shards.errors import UserError
from shards.images.image_header import has_image_magic
from shards.member_names import is_hidden
from shards.pack.entry_plan import ImageEntry, ImagesSource, StoredFile
from shards.pack.fetch import FetchError, ImageFetcher
from shards.pack.image_entries import LabelMode, is_far, is_image, may_be_image, stored_file
from shards.pack.sources.class_folders import check_no_splits
from shards.pack.sources.folder_labels import FolderLabels, find_labels
from shards.pack.sources.image_metadata import (
    METADATA_NAMES,
    ImageMetadata,
    metadata_json,
    read_image_metadata,
)
from shards.pack.sources.side_cars import SideCars, count_extensions, extension_of, match_side_cars
from shards.pack.store_lookup import StoreLookup
from shards.records import ShardInfo
from shards.redaction import redact
from shards.stores.image_download import DownloadConfig
from shards.stores.range_reader import RangeReader

# Bytes that show the format of an image.
_MAGIC_BYTES: Final = 1 << 10
# Concurrent reads of small files of a store.
_NUM_READS: Final = 16


@dataclass(slots=True)
class _Folder:
    """Files below a folder, and what was counted while they were listed."""

    name: str
    files: dict[str, StoredFile] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def entries_from_folder(
    folder: Path | str,
    labels: LabelMode = "auto",
    *,
    label_column: str = "",
    caption_column: str = "",
) -> ImagesSource:
    """Return the images below `folder`, local or in a store, sorted by path.

    Side-cars of an image become members of its sample, and so do the columns of a
    `metadata.jsonl`, `.csv` or `.parquet`. Labels are those of `.cls` files, or of the metadata;
    else the folders that hold the images are classes, numbered by sorted name, if there are at
    least two and each image is in one of them. Raises UserError for folders such as train and test,
    unless `labels` is "none", and without a label if it is "required".
    """
    found = _Folder(redact(str(folder)))
    if is_far(str(folder)):
        listed: Iterator[tuple[str, str, ShardInfo | None]] = _list_store(str(folder))
    else:
        listed = _list_local(Path(folder).expanduser(), str(folder), found.skipped)
    _sort_files(listed, found)
    if labels != "none":
        check_no_splits(found.name, found.images)
    side_cars, left = match_side_cars(found.images, found.others)
    reader = ImageFetcher(DownloadConfig())
    try:
        read = _reader(reader, found)
        metadata = _read_metadata(found, read, label_column, caption_column)
        chosen = find_labels(found.name, found.images, side_cars, metadata, labels, read)
    finally:
        reader.close()
    if left:
        found.skipped["not_an_image"] += len(left)
        found.notes.append(f"not taken: {count_extensions(left)}")
    if labels == "required" and not chosen.numbers and not chosen.in_json:
        raise UserError(
            f"--labels required, but {found.name} has no labels; a label is a .cls file beside an "
            "image, a column label of metadata.jsonl, or the folder of the image if there are at "
            "least two and no image is outside of them; leave --labels out to pack without"
        )
    return _source(found, side_cars, metadata, chosen, is_far(str(folder)), labels)


def _sort_files(listed: Iterator[tuple[str, str, ShardInfo | None]], found: _Folder) -> None:
    """Divide the listed files into images, metadata and others; count those that are left out."""
    unclear: dict[str, tuple[str, ShardInfo | None]] = {}
    order: list[str] = []
    for name, place, info in listed:
        if is_hidden(name) or "/." in f"/{name}":
            found.skipped["hidden"] += 1
            continue
        image, unknown = is_image(name), may_be_image(name)
        file = stored_file(name, place, info)
        if file is None:
            found.skipped["unreadable" if image else "not_an_image"] += 1
            continue
        found.files[name] = file
        if image or unknown:
            order.append(name)
        elif name.rpartition("/")[2] in METADATA_NAMES:
            found.metadata.append(name)
        else:
            found.others.append(name)
        if unknown and not image:
            unclear[name] = place, info
    reader = RangeReader()
    with ThreadPoolExecutor(_NUM_READS) as pool:
        read = pool.map(lambda name: _read_head(reader, *unclear[name]), unclear)
        heads = dict(zip(unclear, read, strict=True))
    for name in order:
        is_one = name not in heads or has_image_magic(heads[name])
        (found.images if is_one else found.others).append(name)


def _read_head(reader: RangeReader, place: str, info: ShardInfo | None) -> bytes:
    if info is not None:
        return reader.read(info, 0, min(info.num_bytes, _MAGIC_BYTES))
    try:
        with open(place, "rb") as file:
            return file.read(_MAGIC_BYTES)
    except OSError:
        return b""


def _reader(fetcher: ImageFetcher, found: _Folder) -> Callable[[Sequence[str]], list[bytes | None]]:
    """Return a function that reads small files by name; None stands for an unreadable one."""

    def read_one(name: str) -> bytes | None:
        try:
            return found.files[name].read(fetcher)
        except FetchError:
            return None

    def read(names: Sequence[str]) -> list[bytes | None]:
        with ThreadPoolExecutor(_NUM_READS) as pool:
            return list(pool.map(read_one, names))

    return read


def _read_metadata(
    found: _Folder,
    read: Callable[[Sequence[str]], list[bytes | None]],
    label: str,
    caption: str,
) -> ImageMetadata:
    texts = dict(zip(found.metadata, read(found.metadata), strict=True))
    readable = {name: data for name, data in texts.items() if data is not None}
    metadata = read_image_metadata(readable, found.images, label, caption)
    if not readable:
        return metadata
    names = ", ".join(readable) if len(readable) < 4 else f"{len(readable):,} files of metadata"
    found.notes.append(f"{len(metadata.rows):,} images have a row in {names}")
    if metadata.num_missing:
        found.notes.append(
            f"{metadata.num_missing:,} rows name a file that is not there, such as "
            f"{metadata.example}"
        )
    if without := len(found.images) - len(metadata.rows):
        found.notes.append(f"{without:,} images have no row in {names}")
    return metadata


def _source(
    found: _Folder,
    side_cars: SideCars,
    metadata: ImageMetadata,
    chosen: FolderLabels,
    far: bool,
    labels: LabelMode,
) -> ImagesSource:
    hidden_column = metadata.label_column if labels == "none" else ""
    taken: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    entries = []
    for name in found.images:
        file = found.files[name]
        beside = {
            extension: found.files[other]
            for extension, other in sorted(side_cars.get(name, {}).items())
            if extension != "cls"
        }
        taken.update(beside.keys())
        fields = _fields(metadata, name, hidden_column)
        doubled = fields.keys() & beside.keys()
        kept.update(doubled)
        entries.append(
            ImageEntry(
                name,
                extension_of(name) if is_image(name) else "",
                file.read,
                file.version,
                chosen.numbers.get(name),
                fields={key: data for key, data in fields.items() if key not in doubled},
                files=beside,
            )
        )
    if taken:
        parts = ", ".join(f"{count:,} .{extension}" for extension, count in sorted(taken.items()))
        found.notes.append(f"members beside the images: {parts}")
    for extension, count in sorted(kept.items()):
        found.notes.append(f"{count:,} .{extension} files are kept instead of the metadata")
    sizes = [found.files[name].num_bytes for name in found.images]
    beside_sizes = np.array([entry.num_bytes_beside for entry in entries], np.int64)
    return ImagesSource(
        name=found.name,
        entries=entries,
        class_names=chosen.class_names,
        skipped=dict(+found.skipped),
        sizes=np.array(sizes, np.int64),
        sizes_beside=beside_sizes if beside_sizes.any() else None,
        is_far=far,
        notes=(*chosen.notes, *found.notes),
    )


def _fields(metadata: ImageMetadata, name: str, hidden_column: str) -> Mapping[str, bytes]:
    row = metadata.rows.get(name)
    if row is None:
        return {}
    fields: dict[str, bytes] = {}
    caption = row.get(metadata.caption_column)
    if caption is not None and caption != "":
        fields["txt"] = str(caption).encode("utf-8", "surrogatepass")
    fields["json"] = metadata_json({key: row[key] for key in row if key != hidden_column})
    return fields


def _list_local(path: Path, given: str, skipped: Counter[str]) -> Iterator[tuple[str, str, None]]:
    """Yield the files below `path`, sorted within each folder: relative name and path."""
    if not path.is_dir():
        raise UserError(f"{given} is not a folder; images are packed from one; check the path")

    def count(_: OSError) -> None:
        skipped["unreadable"] += 1

    root = len(os.path.join(path, ""))
    for parent, folders, files in os.walk(path, onerror=count):
        folders.sort()
        # Links to folders are not followed: they may form a circle.
        skipped["linked_folder"] += sum(os.path.islink(os.path.join(parent, f)) for f in folders)
        for name in sorted(files):
            file = os.path.join(parent, name)
            yield file[root:], file, None


def _list_store(folder: str) -> Iterator[tuple[str, str, ShardInfo]]:
    files = StoreLookup().files_below(folder)
    if files is None:
        raise UserError(
            f"{redact(folder)} is not a folder of its store; images are packed from one; check "
            "the address"
        )
    root = len(folder.rstrip("/")) + 1
    for file in files:
        yield file.uri[root:], file.uri, ShardInfo(file.uri, file.num_bytes or 0, file.version)
