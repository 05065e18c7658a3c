"""Shards of a bench: those that its user named, or made ones."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import pack


@contextmanager
def shards_or_made(given: str | None, num_images: int, side: int) -> Iterator[str]:
    """Yield `given`; if it is None, a folder of made images of `side` pixels, packed as shards."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        pack(entries_from_synthetic(num_images, seed=0, size=side), out)
        yield str(out)
