"""Gallery of a run, and the file that keeps its items after the run."""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from cluster.monitoring.live.gallery import Gallery, GalleryItem, ImageMaker
from shards.crops.sample_cropper import CropJob
from shards.files import write_atomic
from shards.stream.manifest import Manifest

_GALLERY_FILE: Final = "gallery.json"


def open_gallery(out: Path, manifest: Manifest, job: CropJob) -> Gallery:
    """Return a gallery with the items that the run in the folder `out` showed last."""
    gallery = Gallery(manifest.shards, partial(_open_maker, manifest, job))
    gallery.fill(read_gallery(out, len(manifest.shards)))
    return gallery


def read_gallery(out: Path, num_shards: int | None = None) -> list[GalleryItem]:
    """Return the items that the galleries of a run showed last.

    The list is empty if the file is missing or damaged. Items beyond `num_shards` are left out.
    """
    try:
        saved = json.loads((out / _GALLERY_FILE).read_text())["places"]
        items = [GalleryItem(**item) for item in saved]
        return [item for item in items if 0 <= item.shard < (num_shards or item.shard + 1)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_gallery(out: Path, gallery: Gallery) -> None:
    """Write the items of a gallery into the run folder `out`."""
    items = [asdict(item) for item in gallery.items()]
    if items:
        write_atomic(out / _GALLERY_FILE, json.dumps({"places": items}))


def _open_maker(manifest: Manifest, job: CropJob) -> AbstractContextManager[ImageMaker]:
    # The crop engine imports torch: only a gallery that someone looks at needs it.
    from cluster.monitoring.live.thumbnail_maker import ThumbnailMaker

    return ThumbnailMaker(manifest, job)
