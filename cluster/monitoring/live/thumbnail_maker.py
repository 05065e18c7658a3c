"""Thumbnail maker: small images of samples, decoded in processes that may die of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cluster.monitoring.live.gallery import GalleryItem
from shards.crops.chunk_cropper import lower_thread_priority
from shards.crops.isolated_process import IsolatedProcess
from shards.crops.native import NativeEngine
from shards.crops.sample_cropper import CropJob
from shards.errors import StreamSSLError
from shards.inspect.labelled_images import central_square
from shards.inspect.sample_view import find_sample
from shards.records import Sample
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.retry import RetryConfig
from shards.stream.manifest import Manifest

_SIDE: Final = 96
_QUALITY: Final = 80
_SECONDS_PER_SAMPLE: Final = 10.0
# Rejected images are shown whatever the filters of the run are, within these limits.
_LENIENT: Final = AdmissionConfig(
    min_side=1, max_aspect_ratio=1000.0, max_pixels=40_000_000, max_bytes=1 << 25
)


class ThumbnailMaker:
    """Makes thumbnails: all crops of a trained sample, or the centre of a rejected one.

    Use as a context, on the thread that makes them: it gets the lowest priority.
    """

    def __init__(self, manifest: Manifest, job: CropJob, reader: RangeReader | None = None) -> None:
        self._manifest = manifest
        self._reader = reader or RangeReader(SourceConfig(retry=RetryConfig(num_attempts=1)))
        admitted = replace(job.admission, predicate="", min_entropy=0.0)
        build = partial(NativeEngine, job.recipe)
        crops = replace(job, admission=admitted, build_engine=build, label="", only_verify=False)
        square = central_square(_SIDE)
        rejects = replace(
            crops, recipe=square, admission=_LENIENT, build_engine=partial(NativeEngine, square)
        )
        self._crops = IsolatedProcess(crops, _SECONDS_PER_SAMPLE)
        self._rejects = IsolatedProcess(rejects, _SECONDS_PER_SAMPLE)

    def make(self, item: GalleryItem) -> tuple[str, bytes]:
        """Return the key of the sample and its JPEG; empty if it cannot be read or decoded."""
        isolation = self._rejects if item.reason else self._crops
        try:
            sample = find_sample(self._manifest, self._reader, item.shard, item.offset)
            crops = isolation.crop([sample], item.epoch).crops if sample else ()
        except StreamSSLError:  # the store is gone, or the machine is out of memory
            return "", b""
        key = sample.key if isinstance(sample, Sample) else ""
        rows = [group[0] for group in crops if len(group)]
        return key, as_jpeg(mosaic(rows)) if rows else b""

    def __enter__(self) -> "ThumbnailMaker":
        lower_thread_priority()
        return self

    def __exit__(self, *_: object) -> None:
        self._crops.__exit__()
        self._rejects.__exit__()


def mosaic(groups: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return views (V, S, S, 3) of all groups side by side; small views in two rows."""
    largest = max(group.shape[1] for group in groups)
    columns = []
    for group in groups:
        rows = 1 if group.shape[1] == largest else 2
        side = _SIDE // rows
        small = [cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA) for view in group]
        small += [np.zeros_like(small[0])] * (-len(small) % rows)
        columns += [np.concatenate(small[at : at + rows]) for at in range(0, len(small), rows)]
    return np.concatenate(columns, axis=1).astype(np.uint8)


def as_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB pixels (H, W, 3) as a small JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)
    assert done
    return bytes(data)
