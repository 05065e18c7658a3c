"""What can be packed: the pictures of a folder, of a list of files, or made by formula.

A source lists its pictures without opening them; `pack` reads them one by one.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from shards import synthetic
from shards.admission import PICTURE_EXTENSIONS
from shards.errors import UserError


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture that can be read. `version` differs when the bytes differ."""

    name: str
    extension: str  # lower-case, without the dot
    read: Callable[[], bytes]
    version: str
    label: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSource:
    """Pictures in a fixed order. Class number i is called `class_names[i]`, where names are known.

    `skipped` counts, by reason, the files that were found but cannot be packed.
    """

    name: str
    entries: Sequence[Entry]
    class_names: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def entries_from_folder(folder: Path, labels: Literal["auto", "none"] = "auto") -> PackSource:
    """The pictures under `folder`, at any depth, sorted by path.

    With "auto" the sub-folders directly under `folder` are the classes, numbered in the order of
    their sorted names, if every picture lies in one of at least two such sub-folders; otherwise,
    and with "none", nothing is labelled.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pictures are packed from one; check the path")
    skipped: Counter[str] = Counter()
    files = list(_iter_files(folder, skipped))
    pictures = [name for name in files if _extension(name) in PICTURE_EXTENSIONS]
    parents = {name.partition(os.sep)[0] if os.sep in name else "" for name in pictures}
    labelled = labels == "auto" and len(parents) > 1 and "" not in parents
    class_names = tuple(sorted(parents)) if labelled else ()
    numbers = {name: number for number, name in enumerate(class_names)}
    entries: list[Entry] = []
    for name in files:
        label = numbers.get(name.partition(os.sep)[0])
        entries.extend(_open_file(folder, name, label, skipped))
    return PackSource(
        name=str(folder), entries=entries, class_names=class_names, skipped=dict(skipped)
    )


def entries_from_list(file: Path) -> PackSource:
    """The pictures that a text file names, one a line, relative to its own folder.

    A label may follow, after a tab, or after a space where the path before it ends as a picture's
    does. Whole numbers are kept as they are; other labels are numbered in sorted order.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(
            f"the list {file} cannot be read ({error.strerror}); a text file with one path a line "
            f"is needed; check the path"
        ) from error
    rows = [_split_line(line.strip()) for line in lines if line.strip()]
    words = [word for _, word in rows if word is not None]
    if words and len(words) < len(rows):
        bare = next(path for path, word in rows if word is None)
        raise UserError(
            f"{len(rows) - len(words)} of {len(rows)} lines of {file} have no label, {bare!r} for "
            f"one; all lines have a label or none has; complete the list"
        )
    class_names = () if all(word.isdecimal() for word in words) else tuple(sorted(set(words)))
    numbers = {name: number for number, name in enumerate(class_names)}
    skipped: Counter[str] = Counter()
    entries: list[Entry] = []
    for path, word in rows:
        label = None if word is None else numbers[word] if class_names else int(word)
        entries.extend(_open_file(file.parent, path, label, skipped))
    return PackSource(
        name=str(file), entries=entries, class_names=class_names, skipped=dict(skipped)
    )


def entries_from_synthetic(
    num: int,
    *,
    seed: int = 0,
    size: int = 48,
    num_classes: int = len(synthetic.CLASS_NAMES),
) -> PackSource:
    """`num` labelled pictures made by formula, as `synthetic.iter_pictures` yields them."""
    synthetic.check_size(size)
    labels = synthetic.balanced_labels(num, seed=seed, num_classes=num_classes)
    # Samples of what the formula draws now name its version: a changed formula is a new input.
    samples = (_draw(seed, 0, label, size) for label in range(num_classes))
    version = blake2b(b"".join(samples), digest_size=16).hexdigest()
    entries = [
        Entry("synthetic.jpg", "jpg", partial(_draw, seed, index, label, size), version, label)
        for index, label in enumerate(labels.tolist())
    ]
    names = synthetic.CLASS_NAMES[:num_classes]
    return PackSource(name=f"{num} synthetic pictures", entries=entries, class_names=names)


def _draw(seed: int, index: int, label: int, size: int) -> bytes:
    return synthetic.encode_jpeg(synthetic.make_picture(seed, index, label, size))


def _iter_files(folder: Path, skipped: Counter[str]) -> Iterator[str]:
    """Paths of all files under `folder`, relative to it, sorted within each folder."""

    def count(_: OSError) -> None:
        skipped["unreadable"] += 1

    for parent, folders, files in os.walk(folder, onerror=count):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(parent, name), folder)


def _open_file(
    folder: Path, name: str, label: int | None, skipped: Counter[str]
) -> Iterator[Entry]:
    """The entry of one file; none where it cannot be a picture, which `skipped` counts."""
    path, extension = folder / name, _extension(name)
    if extension not in PICTURE_EXTENSIONS:
        skipped["not_a_picture"] += 1
        return
    try:
        status = path.stat()
    except OSError:
        skipped["unreadable"] += 1
        return
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        skipped["unreadable"] += 1
        return
    version = f"{status.st_size}-{status.st_mtime_ns}"
    yield Entry(name, extension, path.read_bytes, version, label)


def _split_line(line: str) -> tuple[str, str | None]:
    """'a b.jpg 3' -> ('a b.jpg', '3'); 'a b.jpg' -> ('a b.jpg', None)."""
    for space in ("\t", " "):
        path, found, label = line.rpartition(space)
        if found and (space == "\t" or _extension(line) not in PICTURE_EXTENSIONS):
            return path.strip(), label.strip()
    return line, None


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()
