"""Gallery: recent rejects and recent crops as a few small images, made only while a page is open.

A run offers only the ids of samples, at most one of each kind every two seconds. Images are made
again from the ids: readers and trainers do nothing for them. They are made slowly, in a process of
their own; an image that killed a process is never opened again.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Protocol

from shards.inspect.contact_sheet import clean_text
from shards.records import Reject, ShardInfo
from shards.redaction import redact

_log = logging.getLogger(__name__)

GalleryKind = Literal["crops", "rejects"]
SampleId = tuple[int, int, int]
"""Shard row, header offset and epoch."""

NUM_TILES: Final = 12  # of each kind
_OFFER_SECONDS: Final = 2.0
# Without a request for this long, the processes that make images end.
_IDLE_SECONDS: Final = 15.0
# After an image there is a pause of this many times its duration: a fiftieth of a core.
_PAUSE_FACTOR: Final = 50
_MIN_PAUSE, _MAX_PAUSE = 0.2, 0.5
_JOIN_SECONDS: Final = 5.0
# Images that killed a process, are too large, or are no images are never opened.
_OPENED: Final = frozenset(
    ("too_small", "format", "aspect_ratio", "animated", "alpha", "cmyk", "bit_depth", "icc_profile",
     "blank", "predicate", "predicate_failed", "truncated", "undecodable")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """A sample to show: its place in the shards, and the reason if it was rejected."""

    shard: int
    offset: int
    epoch: int = 0
    step: int = 0
    key: str = ""
    reason: str = ""
    detail: str = ""
    member: str = ""


class ImageMaker(Protocol):
    """Makes the image of an item."""

    def make(self, item: GalleryItem) -> tuple[str, bytes]:
        """Return the key of the sample and its JPEG; both empty if it cannot be made."""


@dataclass(slots=True)
class _GalleryTile:
    """An item, its number in the run, and its image once it is made; b"" if there is none."""

    number: int
    item: GalleryItem
    image: bytes | None = None


class Gallery:
    """The newest items of a run, and their images. Use as a context.

    `offer` costs microseconds; a page calls `view`. Both may be called from any thread.
    `open_maker` is called on the gallery's own thread, when a page is open and an image is missing.
    """

    def __init__(
        self,
        shards: Sequence[ShardInfo],
        open_maker: Callable[[], AbstractContextManager[ImageMaker]],
    ) -> None:
        self._shards, self._open_maker = shards, open_maker
        self._changed = threading.Condition()
        self._tiles: dict[GalleryKind, list[_GalleryTile]] = {"crops": [], "rejects": []}
        self._num_offered = 0
        self._offered_at: dict[GalleryKind, float] = {}
        self._viewed_at = -_IDLE_SECONDS
        self._ended = False
        self._thread = threading.Thread(target=self._make_images, name="gallery", daemon=True)

    def offer(self, step: int, sample: SampleId | None, rejects: Sequence[Reject]) -> None:
        """Offer a sample of a step and its rejects; at most one of each kind is taken."""
        with self._changed:
            if sample is not None and self._is_due("crops"):
                shard, offset, epoch = sample
                self._take("crops", GalleryItem(shard=shard, offset=offset, epoch=epoch, step=step))
            if rejects and self._is_due("rejects"):
                self._take("rejects", reject_item(self._rarest(rejects), step))

    def _is_due(self, kind: GalleryKind) -> bool:
        now = time.monotonic()
        if now - self._offered_at.get(kind, -_OFFER_SECONDS) < _OFFER_SECONDS:
            return False
        self._offered_at[kind] = now
        return True

    def fill(self, items: Sequence[GalleryItem]) -> None:
        """Take all items that an earlier run kept."""
        with self._changed:
            for item in items:
                self._take("rejects" if item.reason else "crops", item)

    def items(self) -> tuple[GalleryItem, ...]:
        """Return all items, the oldest first."""
        with self._changed:
            return tuple(tile.item for tiles in self._tiles.values() for tile in tiles)

    def view(self) -> dict[str, list[dict[str, Any]]]:
        """Return the tiles, the newest first. Images are made while this is called."""
        with self._changed:
            self._viewed_at = time.monotonic()
            self._changed.notify_all()
            return {
                kind: [self._fields(kind, tile) for tile in reversed(tiles)]
                for kind, tiles in self._tiles.items()
            }

    def image(self, name: str) -> bytes | None:
        """Return the JPEG of that name, if there is one."""
        with self._changed:
            for kind, tiles in self._tiles.items():
                for tile in tiles:
                    if name == f"{kind}-{tile.number}":
                        return tile.image or None
        return None

    def _take(self, kind: GalleryKind, item: GalleryItem) -> None:
        self._num_offered += 1
        tiles = self._tiles[kind]
        tiles.append(_GalleryTile(self._num_offered, item))
        del tiles[:-NUM_TILES]

    def _rarest(self, rejects: Sequence[Reject]) -> Reject:
        """Return a reject whose reason is shown least often."""
        shown = Counter(tile.item.reason for tile in self._tiles["rejects"])
        return min(rejects, key=lambda one: shown[one.reason])

    def _fields(self, kind: GalleryKind, tile: _GalleryTile) -> dict[str, Any]:
        item, name = tile.item, f"{kind}-{tile.number}"
        uri = redact(self._shards[item.shard].uri).rpartition("/")[2]
        return {
            "name": name,
            "key": clean_text(item.key),
            "member": clean_text(item.member),
            "reason": item.reason,
            "detail": clean_text(item.detail),
            "where": clean_text(f"{uri}, byte {item.offset:,}"),
            "step": item.step,
            "image": f"/gallery?name={name}" if tile.image else None,
            "waits": tile.image is None and self._can_open(item),
        }

    def _can_open(self, item: GalleryItem) -> bool:
        whole = self._shards[item.shard].whole
        return not whole and (not item.reason or item.reason in _OPENED)

    def _make_images(self) -> None:
        """Make images until the gallery closes; a failure ends only the images."""
        try:
            self._make_until_closed()
        except Exception as error:  # a run does not fail because of its page
            _log.warning("the live page makes no more images: %s: %s", type(error).__name__, error)

    def _make_until_closed(self) -> None:
        """Make images while a page is open; end the maker's processes when no page is."""
        while self._wait(lambda: self._is_viewed() and self._next() is not None, None):
            with self._open_maker() as maker:
                while self._wait(lambda: self._next() is not None, _IDLE_SECONDS):
                    tile = self._next()
                    if tile is None or not self._is_viewed():
                        break
                    seconds = self._make(maker, tile)
                    pause = min(max(_PAUSE_FACTOR * seconds, _MIN_PAUSE), _MAX_PAUSE)
                    self._wait(lambda: False, pause)

    def _make(self, maker: ImageMaker, tile: _GalleryTile) -> float:
        began = time.monotonic()
        key, image = maker.make(tile.item)
        with self._changed:
            tile.image = image
            if key:
                tile.item = replace(tile.item, key=key)
        return time.monotonic() - began

    def _is_viewed(self) -> bool:
        return time.monotonic() - self._viewed_at < _IDLE_SECONDS

    def _next(self) -> _GalleryTile | None:
        """Return the newest tile without an image, of the kind that has fewer images."""
        with self._changed:
            for tiles in sorted(self._tiles.values(), key=_num_made):
                for tile in reversed(tiles):
                    if tile.image is None and self._can_open(tile.item):
                        return tile
        return None

    def _wait(self, until: Callable[[], bool], seconds: float | None) -> bool:
        """Wait for a condition; return False on time-out and when the gallery closes."""
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
        # An image that takes longer ends with the process.
        self._thread.join(_JOIN_SECONDS)


def _num_made(tiles: Sequence[_GalleryTile]) -> int:
    return sum(bool(tile.image) for tile in tiles)


def reject_item(reject: Reject, step: int) -> GalleryItem:
    """Return the item of a reject."""
    return GalleryItem(
        shard=reject.shard,
        offset=reject.offset,
        step=step,
        key=reject.key,
        reason=reject.reason,
        detail=reject.detail,
        member=reject.member,
    )
