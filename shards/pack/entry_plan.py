"""Single images are dealt to shards and read: files, objects of a store, addresses of the web."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from shards.images.image_header import ImageError, inspect
from shards.pack.fetch import Fetcher, FetchError
from shards.pack.pack_plan import PackConfig, ShardTask, Skipped, Step, deal, shuffled
from shards.records import Sample
from shards.samples.subset import Subset
from shards.tars.headers import BLOCK

# How long an image is taken to be that nobody has looked at yet.
UNKNOWN_BYTES: Final = 1 << 18
# While one more image is opened, looked at and named, so many bytes could be copied.
_BYTES_PER_IMAGE: Final = 1 << 16
_MAX_STEM: Final = 40
_MAX_KEY: Final = 200
# What a member is called that came without a name of its own; others are called "img".
_EXTENSIONS: Final = {
    "jpeg": "jpg", "jpeg_cmyk": "jpg", "png": "png", "apng": "png", "webp": "webp", "gif": "gif",
    "avif": "avif", "bmp": "bmp", "tiff": "tif", "jpeg2000": "jp2", "ppm": "ppm", "ico": "ico",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that can be read. `version` differs when the bytes differ.

    Without an `extension` the member is called after what the bytes are. `fields` are members
    beside the image, by extension. `read` travels by pickle where there are several workers.
    """

    name: str
    extension: str  # lower-case, without the dot
    read: Callable[[Fetcher], bytes]
    version: str
    label: int | None = None
    key: str | None = None
    fields: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSource:
    """Images in a fixed order. Class number i is called `class_names[i]`, where names are known.

    `skipped` counts, by reason, the files that were found but cannot be packed. `sizes` (N,) int64
    are bytes, about. `content` names what the entries are, where that is known without asking
    each. `is_far` says that reading is mostly waiting.
    """

    name: str
    entries: Sequence[Entry]
    class_names: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    sizes: NDArray[np.int64] | None = None
    content: str = ""
    is_far: bool = False

    @property
    def digest(self) -> str:
        """Names the content: two sources that agree in it give the same shards."""
        digest = blake2b(self.content.encode(), digest_size=16)
        for entry in self.entries if not self.content else ():
            row = [entry.name, entry.version, entry.extension, entry.label]
            digest.update(json.dumps(row).encode() + b"\n")
        digest.update(json.dumps(self.class_names).encode())
        return digest.hexdigest()

    @property
    def unit(self) -> Literal["images", "bytes"]:
        return "images"

    @property
    def subset(self) -> None:
        """No list chooses from single images: what is not wanted is not listed."""

    def plan(self, config: PackConfig) -> "EntriesPlan":
        """Which image goes into which shard."""
        order = shuffled(len(self.entries), config.seed)
        sizes = self.sizes
        if sizes is None:
            sizes = np.full(len(self.entries), UNKNOWN_BYTES, np.int64)
        # A header block and whole blocks of data, for the image and for its label.
        lengths = BLOCK + -(-sizes // BLOCK) * BLOCK
        if len(self.entries) and self.entries[0].label is not None:
            lengths = lengths + 2 * BLOCK
        bounds = deal(lengths[order], config.samples_per_shard, config.max_bytes)
        cost = int(lengths.sum()) + _BYTES_PER_IMAGE * len(order)
        return EntriesPlan(self, order, bounds, cost)


class EntriesPlan:
    """Shard n holds the entries `order[bounds[n] : bounds[n + 1]]`."""

    def __init__(
        self,
        source: PackSource,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        cost: int,
    ) -> None:
        self._source, self._order, self._bounds, self._cost = source, order, bounds, cost
        self.num_shards = len(bounds) - 1

    def units(self, number: int) -> int:
        """See `Plan.units`."""
        return int(self._bounds[number + 1] - self._bounds[number])

    def cost(self) -> int:
        """See `Plan.cost`."""
        return self._cost

    def variant(self, number: int, irregular: frozenset[int]) -> str:  # noqa: ARG002
        """See `Plan.variant`."""
        return ""

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:  # noqa: ARG002
        """See `Plan.task`."""
        rows = self._order[self._bounds[number] : self._bounds[number + 1]].tolist()
        entries = tuple((row, self._source.entries[row]) for row in rows)
        return EntriesTask(number, entries, self._source.is_far)


@dataclass(frozen=True, slots=True)
class EntriesTask:
    """The images of one shard, each with its row in the source."""

    number: int
    entries: tuple[tuple[int, Entry], ...]
    is_far: bool
    variant: str = ""

    def read(self, fetcher: Fetcher, subset: Subset | None) -> Iterator[Step]:
        """See `ShardTask.read`."""
        assert subset is None, "a subset list chooses from shards"
        read = partial(_read, fetcher)
        yield from fetcher.in_order(read, self.entries) if self.is_far else map(read, self.entries)


def _read(fetcher: Fetcher, row: tuple[int, Entry]) -> Step:
    number, entry = row
    try:
        data = entry.read(fetcher)
        format_ = inspect(data).format
    except FetchError as error:
        return Step(1, skipped=(Skipped(entry.name, error.reason, error.lost),))
    except ImageError as error:
        return Step(1, skipped=(Skipped(entry.name, error.reason),))
    fields = {entry.extension or _EXTENSIONS.get(format_, "img"): data}
    if entry.label is not None:
        fields["cls"] = str(entry.label).encode()
    key = _given_key(entry.key) or f"{number:08d}{_safe_stem(entry.name)}"
    return Step(1, samples=(Sample(-1, number, key, fields | dict(entry.fields)),))


def _safe_stem(name: str) -> str:
    """'cats/My cát.v2.jpg' -> '-My_cat_v2': no dot, slash, space or accent may be in a key."""
    stem = Path(name).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:_MAX_STEM]
    return f"-{safe}" if safe else ""


def _given_key(key: str | None) -> str:
    """'a.b c/../d' -> 'a_b_c/_/d': a dot would end the key, and nobody unpacks it elsewhere."""
    parts = re.sub(r"[^\w/-]+", "_", key or "").split("/")
    return "/".join(part for part in parts if part)[:_MAX_KEY].rstrip("/")
