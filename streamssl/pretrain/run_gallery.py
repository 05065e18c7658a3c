"""Gallery of a run, and the file that keeps its items after the run."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from cluster.monitoring.live.gallery import Gallery, GalleryItem, ImageMaker
from shards.errors import StreamSSLError
from shards.files import write_atomic
from shards.records import ShardInfo
from streamssl.config.run_config import RunConfig
from streamssl.saved_files import SavedGallery, parse_saved

_GALLERY_FILE: Final = "gallery.json"


def open_gallery(
    out: Path,
    shards: Sequence[ShardInfo],
    open_maker: Callable[[], AbstractContextManager[ImageMaker]],
) -> Gallery:
    """Return a gallery with the items that the run in the folder `out` showed last."""
    gallery = Gallery(shards, open_maker)
    gallery.fill(read_gallery(out, len(shards)))
    return gallery


def open_saved_gallery(out: Path, config: RunConfig) -> Gallery | None:
    """Return the gallery of an ended run, unless it showed nothing or its data is gone."""
    if not read_gallery(out):
        return None
    # Reading the list of shards takes a second of imports; most pages need none of it.
    from streamssl.pretrain.saved_data import open_saved_data

    try:
        data = open_saved_data(out)
    except (StreamSSLError, OSError):
        return None

    def open_maker() -> AbstractContextManager[ImageMaker]:
        # Only a gallery in an open page needs a crop engine.
        from streamssl.pretrain.run_thumbnails import thumbnail_maker

        return thumbnail_maker(config, data)

    return open_gallery(out, data.manifest.shards, open_maker)


def read_gallery(out: Path, num_shards: int | None = None) -> list[GalleryItem]:
    """Return the items that the galleries of a run showed last.

    The list is empty if the file is missing or damaged. Items beyond `num_shards` are left out.
    """
    try:
        saved = parse_saved(SavedGallery, (out / _GALLERY_FILE).read_bytes())["places"]
        known = [one.name for one in fields(GalleryItem)]
        items = [GalleryItem(**{n: one[n] for n in known if n in one}) for one in saved]
        return [
            item
            for item in items
            if 0 <= item.shard < (item.shard + 1 if num_shards is None else num_shards)
        ]
    except (OSError, ValueError):
        return []


def write_gallery(out: Path, gallery: Gallery) -> None:
    """Write the items of a gallery into the run folder `out`."""
    items = [asdict(item) for item in gallery.items()]
    if items:
        write_atomic(out / _GALLERY_FILE, json.dumps({"places": items}))
