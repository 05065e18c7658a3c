"""Side-cars of images: files beside them with their label, text or other data."""

from collections.abc import Iterable
from typing import Final

# Extensions of side-cars that become members of the sample.
SIDE_CARS: Final = frozenset({"cls", "label", "class", "json", "txt", "caption"})

# Image name -> extension -> name of the side-car.
SideCars = dict[str, dict[str, str]]


def match_side_cars(images: Iterable[str], others: Iterable[str]) -> tuple[SideCars, list[str]]:
    """Return the side-cars of each image, and the files that belong to no image.

    'a/b.txt' belongs to 'a/b.png', as 'a/b.png.txt' does; if there is none, to 'a/b.seg.png', whose
    key ends at the first dot. A file may belong to several images.
    """
    by_name: dict[str, list[str]] = {}
    by_key: dict[str, list[str]] = {}
    for image in images:
        for name in {image, _stem(image)}:
            by_name.setdefault(name, []).append(image)
        by_key.setdefault(_first_dot_key(image), []).append(image)
    found: SideCars = {}
    left = []
    for name in others:
        extension = extension_of(name)
        owners: list[str] = []
        if extension in SIDE_CARS:
            owners = by_name.get(_stem(name)) or by_key.get(_stem(name)) or []
        owners = [owner for owner in owners if extension not in found.get(owner, {})]
        for owner in owners:
            found.setdefault(owner, {})[extension] = name
        if not owners:
            left.append(name)
    return found, left


def count_extensions(names: Iterable[str]) -> str:
    """Return the extensions of files with their counts: '3 .xml, 1 .md'."""
    counts: dict[str, int] = {}
    for name in names:
        extension = extension_of(name)
        shown = f".{extension[:12]}" if extension else "without an extension"
        counts[shown] = counts.get(shown, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = sum(count for _, count in ranked[5:])
    parts = [f"{count:,} {shown}" for shown, count in ranked[:5]]
    return ", ".join(parts + ([f"{more:,} others"] if more else []))


def extension_of(name: str) -> str:
    """Return what follows the last dot of a file name, in lower case: 'a/b.PNG' -> 'png'."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base.lstrip(".") else ""


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def _first_dot_key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
