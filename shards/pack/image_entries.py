"""Sources of single images: a list of files, synthetic images; and entries of files.

A source lists its images without opening them; workers read them one by one.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal

import numpy as np

from shards.errors import UserError
from shards.pack.entry_plan import UNKNOWN_BYTES, ImageEntry, ImagesSource, StoredFile
from shards.pack.fetch import ImageFetcher, file_version
from shards.pack.store_lookup import StoreLookup
from shards.records import ShardInfo
from shards.redaction import redact
from shards.samples import synthetic_images as synthetic
from shards.samples.image_member import IMAGE_EXTENSIONS

LabelMode = Literal["auto", "required", "none"]
# Files that are never opened to search for an image: text, code, tables, arrays, archives, sound.
_NO_IMAGES: Final = frozenset(
    {
        *("txt", "text", "md", "rst", "log", "csv", "tsv", "json", "jsonl", "ndjson", "xml"),
        *("yaml", "yml", "toml", "ini", "cfg", "conf", "html", "htm", "css", "js", "py", "ipynb"),
        *("sh", "c", "cpp", "h", "java", "m", "r", "tex", "bib", "pdf", "doc", "docx", "xls"),
        *("xlsx", "ppt", "pptx", "cls", "label", "class", "caption", "url", "srt", "vtt", "lnk"),
        *("npy", "npz", "mat", "pt", "pth", "pkl", "pickle", "h5", "hdf5", "parquet", "arrow"),
        *("feather", "db", "sqlite", "lmdb", "tfrecord", "idx", "zip", "tar", "gz", "tgz", "zst"),
        *("bz2", "xz", "7z", "rar", "mp3", "wav", "flac", "ogg", "mp4", "avi", "mov", "mkv"),
        *("webm", "sha256", "md5"),
    }
)
# Name, path or address, label.
_Row = tuple[str, str, int | None]


def entries_from_list(file: Path | str, labels: LabelMode = "auto") -> ImagesSource:
    """Return the images of a text file with one path or address a line.

    Paths are relative to the folder of the file. A label may follow after a tab, or after a space
    if the line does not end with an image extension. Integer labels are kept; other labels are
    numbered in sorted order; "none" drops them.
    """
    lines = _read_text(str(file)).splitlines()
    rows = [_split_line(line.strip()) for line in lines if line.strip()]
    if labels == "none":
        rows = [(path, None) for path, _ in rows]
    names = [name for _, name in rows if name is not None]
    if names and len(names) < len(rows):
        unlabelled = next(path for path, name in rows if name is None)
        raise UserError(
            f"{len(rows) - len(names)} of {len(rows)} lines of {redact(str(file))} have no label, "
            f"such as {redact(unlabelled)!r}; all lines have a label or none has; complete the list"
        )
    class_names = () if all(name.isdecimal() for name in names) else tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(class_names)}
    skipped: Counter[str] = Counter()
    parent = parent_of(str(file))
    found = [
        (path, place_of(path, parent),
         None if name is None else numbers[name] if class_names else int(name))
        for path, name in rows
    ]  # fmt: skip
    far = any(is_far(place) for _, place, _ in found)
    return _source(redact(str(file)), found, class_names, skipped, far)


def entries_from_synthetic(
    num: int,
    *,
    seed: int = 0,
    size: int = 48,
    num_classes: int = len(synthetic.CLASS_NAMES),
) -> ImagesSource:
    """Return the `num` labelled images of `synthetic.iter_images`."""
    synthetic.check_size(size)
    labels = synthetic.balanced_labels(num, seed=seed, num_classes=num_classes)
    # A digest of one image of each class is the version: a changed formula is a new input.
    samples = [_draw(seed, 0, label, size) for label in range(num_classes)]
    version = blake2b(b"".join(samples), digest_size=16).hexdigest()
    entries = [
        ImageEntry("synthetic.jpg", "jpg", partial(_draw, seed, index, label, size), version, label)
        for index, label in enumerate(labels.tolist())
    ]
    return ImagesSource(
        name=f"{num} synthetic images",
        entries=entries,
        class_names=synthetic.CLASS_NAMES[:num_classes],
        sizes=np.full(num, sum(map(len, samples)) // len(samples), np.int64),
    )


def is_image(name: str) -> bool:
    """Return True if a file name has the extension of an image."""
    return _extension(name) in IMAGE_EXTENSIONS


def may_be_image(name: str) -> bool:
    """Return True if the first bytes of a file must decide: its name says nothing."""
    return _extension(name) not in _NO_IMAGES


def is_far(place: str) -> bool:
    """Return True for an address of a store or of the web, False for a local path."""
    return "://" in place and not place.startswith("file://")


def parent_of(file: str) -> str:
    """Return the folder of a list; paths in the list are relative to it."""
    return file.rpartition("/")[0] if is_far(file) else os.path.dirname(file)


def place_of(path: str, parent: str) -> str:
    """Return the address of `path` in a list that is in the folder `parent`."""
    if "://" in path:
        return path
    if is_far(parent):
        # A list from elsewhere must not name files of this machine.
        return f"{parent}/{path}" if not path.startswith("/") else f"file://{path}"
    return os.path.join(parent, path)


def entry_at(name: str, place: str, label: int | None = None) -> ImageEntry:
    """Return an image that was not listed; its size and version are unknown."""
    if "://" not in place:
        return ImageEntry(name, "", partial(_read_file, place, ""), "", label)
    version = blake2b(place.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return ImageEntry(redact(place), "", partial(_download, place), version, label)


def _source(
    name: str, rows: Iterable[_Row], class_names: tuple[str, ...], skipped: Counter[str], far: bool
) -> ImagesSource:
    entries: list[ImageEntry] = []
    sizes: list[int] = []
    for row in rows:
        for entry, size in _open(row, skipped):
            entries.append(entry)
            sizes.append(size)
    return ImagesSource(
        name=name,
        entries=entries,
        class_names=class_names,
        skipped=dict(+skipped),
        sizes=np.array(sizes, np.int64),
        is_far=far,
    )


def _open(row: _Row, skipped: Counter[str]) -> Iterator[tuple[ImageEntry, int]]:
    """Yield the entry of a row and its size; count a row that cannot be an image."""
    name, place, label = row
    if "://" in place:
        yield entry_at(name, place, label), UNKNOWN_BYTES
        return
    if not is_image(name) and not may_be_image(name):
        skipped["not_an_image"] += 1
        return
    file = stored_file(name, place)
    if file is None:
        skipped["unreadable"] += 1
        return
    extension = _extension(name) if is_image(name) else ""
    yield ImageEntry(name, extension, file.read, file.version, label), file.num_bytes


def stored_file(name: str, place: str, info: ShardInfo | None = None) -> StoredFile | None:
    """Return a local file, or the listed one of a store; None if it cannot be read."""
    if info is not None:
        return StoredFile(name, partial(_read_listed, info), info.version, info.num_bytes)
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        return None
    version = file_version(status)
    return StoredFile(name, partial(_read_file, place, version), version, status.st_size)


def _read_file(path: str, version: str, fetcher: ImageFetcher) -> bytes:
    return fetcher.file(path, version)


def _read_listed(info: ShardInfo, fetcher: ImageFetcher) -> bytes:
    return fetcher.listed(info)


def _download(address: str, fetcher: ImageFetcher) -> bytes:
    return fetcher.address(address)


def _draw(seed: int, index: int, label: int, size: int, _: ImageFetcher | None = None) -> bytes:
    return synthetic.encode_jpeg(synthetic.make_image(seed, index, label, size))


def _read_text(file: str) -> str:
    if is_far(file):
        data = StoreLookup().read(file)
        reason = "it does not exist"
    else:
        try:
            data = Path(file).expanduser().read_bytes()
        except OSError as error:
            data, reason = None, str(error.strerror)
    if data is None:
        raise UserError(
            f"the list {redact(file)} cannot be read ({reason}); a text file with one path a line "
            f"is needed; check the path"
        )
    if b"\0" in data:
        raise UserError(
            f"{redact(file)} is no text; a list has a path or an address a line: pack an image by "
            "the name of its folder, and other kinds with --kind"
        )
    return data.decode("utf-8-sig", "surrogateescape")


def _split_line(line: str) -> tuple[str, str | None]:
    """'a b.jpg 3' -> ('a b.jpg', '3'); 'a b.jpg' -> ('a b.jpg', None)."""
    for space in ("\t", " "):
        path, found, label = line.rpartition(space)
        if found and (space == "\t" or not is_image(line)):
            return path.strip(), label.strip()
    return line, None


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()
