"""Recent rejects and recent crops, to be looked at: a few small images, made when somebody looks.

A run only says which samples they are, at most one of each kind every two seconds. What a sample
looks like is made again from its id: readers and trainers do nothing for it. It is made in a
process of its own, slowly, while somebody looks; what killed a process is never opened again.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.crops.chunk_cropper import CropJob, step_back
from shards.crops.isolated_process import Isolation
from shards.crops.opencv import OpenCVEngine
from shards.errors import StreamSSLError
from shards.inspect.contact_sheet import plain
from shards.inspect.labelled_images import central_square
from shards.inspect.sample_view import find_sample
from shards.records import Reject, Sample
from shards.redaction import redact
from shards.samples.admission import AdmissionConfig
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.retry import RetryConfig
from shards.stream.manifest import Manifest

Kind = Literal["crops", "rejects"]
SampleId = tuple[int, int, int]
"""Shard row, header offset and epoch."""

NUM_TILES: Final = 12  # of either kind
_SIDE: Final = 96
_QUALITY: Final = 80
_OFFER_SECONDS: Final = 2.0
# Nobody looks any more; the processes go.
_AWAY_SECONDS: Final = 15.0
# An image is made, then there is a pause of so many times as long: a fiftieth of a core.
_REST: Final = 50
_MIN_PAUSE, _MAX_PAUSE = 0.2, 0.5
_SECONDS_PER_SAMPLE: Final = 10.0
_LEAVE_SECONDS: Final = 5.0
# What killed a process, what is no image, and what is too large are never opened again.
_OPENED: Final = frozenset(
    ("too_small", "format", "aspect_ratio", "animated", "alpha", "cmyk", "bit_depth", "icc_profile",
     "blank", "predicate", "predicate_failed", "truncated", "undecodable")
)  # fmt: skip
_LENIENT: Final = AdmissionConfig(
    min_side=1, max_aspect_ratio=1000.0, max_pixels=40_000_000, max_bytes=1 << 25
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A sample to show: where it is, and why it was refused, if it was."""

    shard: int
    offset: int
    epoch: int = 0
    step: int = 0
    key: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(slots=True)
class _Tile:
    """A place, its number in the run, and its image once it is made; b"": there is none."""

    number: int
    place: Place
    image: bytes | None = None


class Gallery:
    """The newest places of a run, and their images. Use as a context.

    `offer` costs microseconds, `look` is called by whoever shows them; both from any thread.
    """

    def __init__(self, manifest: Manifest, job: CropJob) -> None:
        self._manifest, self._job = manifest, job
        self._reader = RangeReader(SourceConfig(retry=RetryConfig(num_attempts=1)))
        self._changed = threading.Condition()
        self._tiles: dict[Kind, list[_Tile]] = {"crops": [], "rejects": []}
        self._num_offered = 0
        self._offered_at: dict[Kind, float] = {}
        self._looked_at = -_AWAY_SECONDS
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="gallery", daemon=True)

    def offer(self, step: int, sample: SampleId | None, rejects: Sequence[Reject]) -> None:
        """A sample of a step and its rejects; one of each kind is taken, if it is time for one."""
        with self._changed:
            if sample is not None and self._is_time("crops"):
                shard, offset, epoch = sample
                self._take("crops", Place(shard=shard, offset=offset, epoch=epoch, step=step))
            if rejects and self._is_time("rejects"):
                self._take("rejects", refused(self._rarest(rejects), step))

    def _is_time(self, kind: Kind) -> bool:
        now = time.monotonic()
        if now - self._offered_at.get(kind, -_OFFER_SECONDS) < _OFFER_SECONDS:
            return False
        self._offered_at[kind] = now
        return True

    def fill(self, places: Sequence[Place]) -> None:
        """Take what an earlier run kept, all of it."""
        with self._changed:
            for place in places:
                self._take("rejects" if place.reason else "crops", place)

    def places(self) -> tuple[Place, ...]:
        """All that is shown, the oldest first."""
        with self._changed:
            return tuple(tile.place for tiles in self._tiles.values() for tile in tiles)

    def look(self) -> dict[str, list[dict[str, Any]]]:
        """What there is, the newest first. While this is called, images are made."""
        with self._changed:
            self._looked_at = time.monotonic()
            self._changed.notify_all()
            return {
                kind: [self._fields(kind, tile) for tile in reversed(tiles)]
                for kind, tiles in self._tiles.items()
            }

    def image(self, name: str) -> bytes | None:
        """The JPEG of that name, if there is one."""
        with self._changed:
            for kind, tiles in self._tiles.items():
                for tile in tiles:
                    if name == f"{kind}-{tile.number}":
                        return tile.image or None
        return None

    def _take(self, kind: Kind, place: Place) -> None:
        self._num_offered += 1
        tiles = self._tiles[kind]
        tiles.append(_Tile(self._num_offered, place))
        del tiles[:-NUM_TILES]

    def _rarest(self, rejects: Sequence[Reject]) -> Reject:
        """One whose reason is shown least: a thousand alike say no more than one."""
        shown = Counter(tile.place.reason for tile in self._tiles["rejects"])
        return min(rejects, key=lambda one: shown[one.reason])

    def _fields(self, kind: Kind, tile: _Tile) -> dict[str, Any]:
        place, name = tile.place, f"{kind}-{tile.number}"
        uri = redact(self._manifest.shards[place.shard].uri).rpartition("/")[2]
        made = tile.image
        return {
            "name": name,
            "key": plain(place.key),
            "reason": place.reason,
            "detail": plain(place.detail),
            "where": plain(f"{uri}, byte {place.offset:,}"),
            "step": place.step,
            "image": f"/gallery?name={name}" if made else None,
            "waits": made is None and self._can_open(place),
        }

    def _can_open(self, place: Place) -> bool:
        whole = self._manifest.shards[place.shard].whole
        return not whole and (not place.reason or place.reason in _OPENED)

    def _work(self) -> None:
        """Make images while somebody looks; let the processes go when nobody does."""
        step_back()
        while self._wait(lambda: self._is_looked_at() and self._next() is not None, None):
            with Maker(self._manifest, self._job, self._reader) as maker:
                while self._wait(lambda: self._next() is not None, _AWAY_SECONDS):
                    tile = self._next()
                    if tile is None or not self._is_looked_at():
                        break
                    seconds = self._make(maker, tile)
                    pause = min(max(_REST * seconds, _MIN_PAUSE), _MAX_PAUSE)
                    self._wait(lambda: False, pause)

    def _make(self, maker: "Maker", tile: _Tile) -> float:
        began = time.monotonic()
        key, image = maker.make(tile.place)
        with self._changed:
            tile.image = image
            if key:
                tile.place = replace(tile.place, key=key)
        return time.monotonic() - began

    def _is_looked_at(self) -> bool:
        return time.monotonic() - self._looked_at < _AWAY_SECONDS

    def _next(self) -> _Tile | None:
        """The newest tile that waits for its image, of the kind that has fewer of them."""
        with self._changed:
            for tiles in sorted(self._tiles.values(), key=_num_made):
                for tile in reversed(tiles):
                    if tile.image is None and self._can_open(tile.place):
                        return tile
        return None

    def _wait(self, until: Callable[[], bool], seconds: float | None) -> bool:
        """Wait for it; false when the gallery closes, too."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._ended or until(), seconds)
            return found and not self._ended

    def __enter__(self) -> "Gallery":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # An image that takes long ends with the process.
        self._thread.join(_LEAVE_SECONDS)


def _num_made(tiles: Sequence[_Tile]) -> int:
    return sum(bool(tile.image) for tile in tiles)


class Maker:
    """Makes small images of samples, in processes that may die of them. Use as a context."""

    def __init__(self, manifest: Manifest, job: CropJob, reader: RangeReader) -> None:
        self._manifest, self._reader = manifest, reader
        admitted = replace(job.admission, predicate="", min_entropy=0.0)
        build = partial(OpenCVEngine, job.recipe)
        plainly = replace(job, admission=admitted, build_engine=build, label="", only_verify=False)
        square = central_square(_SIDE)
        leniently = replace(
            plainly, recipe=square, admission=_LENIENT, build_engine=partial(OpenCVEngine, square)
        )
        self._crops = Isolation(plainly, _SECONDS_PER_SAMPLE)
        self._rejects = Isolation(leniently, _SECONDS_PER_SAMPLE)

    def make(self, place: Place) -> tuple[str, bytes]:
        """The key of the sample and its JPEG; nothing where it cannot be read or decoded."""
        isolation = self._rejects if place.reason else self._crops
        try:
            sample = find_sample(self._manifest, self._reader, place.shard, place.offset)
            crops = isolation.crop([sample], place.epoch).crops if sample else ()
        except StreamSSLError:  # a store that is gone, or a machine without memory
            return "", b""
        key = sample.key if isinstance(sample, Sample) else ""
        rows = [group[0] for group in crops if len(group)]
        return key, as_jpeg(mosaic(rows)) if rows else b""

    def __enter__(self) -> "Maker":
        return self

    def __exit__(self, *_: object) -> None:
        self._crops.__exit__()
        self._rejects.__exit__()


def mosaic(groups: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Views (V, S, S, 3) of every group side by side; small ones half as large, in two rows."""
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
    """RGB (H, W, 3) as a small JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)
    assert done
    return bytes(data)


def refused(one: Reject, step: int) -> Place:
    """The place of a reject."""
    return Place(
        shard=one.shard,
        offset=one.offset,
        step=step,
        key=one.key,
        reason=one.reason,
        detail=one.detail,
    )
