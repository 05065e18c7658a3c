"""Labels of the images of a folder: of side-cars, of metadata, or of the folders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from shards.pack.image_entries import LabelMode
from shards.pack.sources.class_folders import describe_classes, find_classes
from shards.pack.sources.image_metadata import ImageMetadata
from shards.pack.sources.side_cars import SideCars, extension_of
from shards.records import Sample
from shards.samples.labels import USUAL_NAMES, Label, find_label, plain_label

# A longer file is no label.
_MAX_LABEL_BYTES = 1 << 12
# JSON side-cars that are searched for a label.
_NUM_JSON = 16


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """Class number of each labelled image, and the names of the classes if labels are words.

    `in_json` is True if the JSON side-cars have labels, which stay where they are.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    in_json: bool = False


def find_labels(
    root: str,
    images: Sequence[str],
    side_cars: SideCars,
    metadata: ImageMetadata,
    labels: LabelMode,
    read: Callable[[Sequence[str]], list[bytes | None]],
) -> FolderLabels:
    """Return the labels of images: those of `.cls` files, else of metadata, else of folders."""
    if labels == "none":
        return FolderLabels()
    files = {
        image: next(beside[name] for name in USUAL_NAMES if name in beside)
        for image, beside in side_cars.items()
        if not beside.keys().isdisjoint(USUAL_NAMES)
    }
    by_folder = find_classes(images)
    if files:
        values = dict(zip(files, map(_label, read(list(files.values()))), strict=True))
        found, origin = values, f"of .{extension_of(next(iter(files.values())))} files"
    elif metadata.label_column:
        column = metadata.label_column
        found = {name: plain_label(row.get(column)) for name, row in metadata.rows.items()}
        origin = f"of column {column} of the metadata"
    elif by_folder is not None:
        numbers = {name: number for number, name in enumerate(by_folder.names)}
        notes = [describe_classes(by_folder.names, f"sub-folders of {root}")]
        if _in_json(side_cars, read):
            notes.append("the .json files have labels, too: the names of the folders are taken")
        return FolderLabels(
            {image: numbers[name] for image, name in zip(images, by_folder.of_image, strict=True)},
            by_folder.names,
            tuple(notes),
        )
    else:
        return FolderLabels(in_json=_in_json(side_cars, read))
    return _number(found, origin, images, is_in_folders=by_folder is not None)


def _in_json(side_cars: SideCars, read: Callable[[Sequence[str]], list[bytes | None]]) -> bool:
    """Return True if one of the first JSON side-cars has a label."""
    names = [files["json"] for files in side_cars.values() if "json" in files]
    found = [Sample(-1, 0, "", {"json": data or b""}) for data in read(names[:_NUM_JSON])]
    return any(find_label(sample) is not None for sample in found)


def _label(data: bytes | None) -> Label | None:
    if data is None or len(data) > _MAX_LABEL_BYTES:
        return None
    return plain_label(data.decode("utf-8-sig", errors="replace"))


def _number(
    found: Mapping[str, Label | None], origin: str, images: Sequence[str], *, is_in_folders: bool
) -> FolderLabels:
    """Return labels as numbers: numbers are kept; with a word among them all are names."""
    known = {image: label for image, label in found.items() if label is not None}
    numbers = {image: label for image, label in known.items() if isinstance(label, int)}
    names: tuple[str, ...] = ()
    if len(numbers) < len(known):
        names = tuple(sorted({str(label) for label in known.values()}))
        number_of = {name: number for number, name in enumerate(names)}
        numbers = {image: number_of[str(label)] for image, label in known.items()}
        notes = [describe_classes(names, origin)]
    else:
        notes = [f"{len(set(numbers.values())):,} class numbers {origin}"] if numbers else []
    if without := len(images) - len(numbers):
        notes.append(f"{without:,} of {len(images):,} images have no label {origin}")
    if is_in_folders:
        notes.append(f"the labels {origin} are taken, not the names of the folders")
    return FolderLabels(numbers, names, tuple(notes))
