"""Samples of plain tars: for peers with their own format, and to count delivered samples."""

import tarfile
from collections.abc import Iterator
from pathlib import Path


def iter_samples(folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, JPEG bytes) of every image of every tar of a folder."""
    for shard in sorted(Path(folder).glob("*.tar")):
        yield from iter_shard(shard)


def iter_shard(shard: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, JPEG bytes) of every image of a tar."""
    with tarfile.open(shard) as tar:
        for member in tar:
            name, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            if file is not None and extension == "jpg":
                yield name, file.read()


def sample_places(folder: Path) -> dict[str, str]:
    """Return sample names by "<shard row>:<offset of the first header>"."""
    places: dict[str, str] = {}
    for row, shard in enumerate(sorted(folder.glob("*.tar"))):
        seen: set[str] = set()
        with tarfile.open(shard) as tar:
            for member in tar:
                name = member.name.partition(".")[0]
                if name not in seen:
                    seen.add(name)
                    places[f"{row}:{member.offset}"] = name
    return places
