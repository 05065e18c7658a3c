"""Plan of a pack of single images: files, objects of a store, addresses of the web."""

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

from shards.images.image_header import ImageError, read_image_header
from shards.pack.fetch import FetchError, ImageFetcher
from shards.pack.pack_plan import (
    PackConfig,
    PlannedRows,
    SamplesRead,
    ShardTask,
    SkippedSample,
    shard_bounds,
    shuffled,
)
from shards.records import Sample
from shards.samples.subset import Subset
from shards.tars.header_fields import padded
from shards.tars.headers import BLOCK

# Assumed size of an image that was not listed.
UNKNOWN_BYTES: Final = 1 << 18
# Bytes that could be copied while one image is opened, inspected and named.
_COST_PER_IMAGE: Final = 1 << 16
_MAX_STEM: Final = 40
_MAX_KEY: Final = 200
# Extension of a member by image format, for images without an extension; otherwise "img".
_EXTENSIONS: Final = {
    "jpeg": "jpg", "jpeg_cmyk": "jpg", "png": "png", "apng": "png", "webp": "webp", "gif": "gif",
    "avif": "avif", "bmp": "bmp", "tiff": "tif", "jpeg2000": "jp2", "ppm": "ppm", "ico": "ico",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredFile:
    """File that can be read. `version` differs when the bytes differ."""

    name: str
    read: Callable[[ImageFetcher], bytes]
    version: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image that can be read. `version` differs when the bytes differ.

    Without an `extension` the member is named after the format of the bytes. `fields` are members
    beside the image, by extension; `files` are those that are read with it. `read` must be
    picklable for several workers.
    """

    name: str
    extension: str  # lower-case, without the dot
    read: Callable[[ImageFetcher], bytes]
    version: str
    label: int | None = None
    key: str | None = None
    fields: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, StoredFile] = field(default_factory=dict)

    @property
    def identity(self) -> list[object]:
        """Values that differ when the members differ; those of most images are four."""
        row: list[object] = [self.name, self.version, self.extension, self.label]
        if self.fields or self.files:
            fields = [[name, blake2b(data).hexdigest()] for name, data in self.fields.items()]
            row += [fields, [[name, file.version] for name, file in self.files.items()]]
        return row

    @property
    def num_bytes_beside(self) -> int:
        """Bytes of the members beside the image in a tar, without the label."""
        sizes = [len(data) for data in self.fields.values()]
        sizes += [file.num_bytes for file in self.files.values()]
        return sum(BLOCK + padded(size) for size in sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesSource:
    """Images in a fixed order; class number i is called `class_names[i]`, if names are known.

    `skipped` counts, by reason, the files that were found but cannot be packed. `sizes` (N,) int64
    are approximate bytes, and `sizes_beside` those of the members beside each image. `content` is a
    digest of the entries, if it is known without reading each. `is_far` is True if reads mostly
    wait for a network.
    """

    name: str
    entries: Sequence[ImageEntry]
    class_names: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    sizes: NDArray[np.int64] | None = None
    sizes_beside: NDArray[np.int64] | None = None
    content: str = ""
    is_far: bool = False
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """See `PackSource.digest`."""
        digest = blake2b(self.content.encode(), digest_size=16)
        for entry in self.entries if not self.content else ():
            digest.update(json.dumps(entry.identity).encode() + b"\n")
        digest.update(json.dumps(self.class_names).encode())
        return digest.hexdigest()

    @property
    def unit(self) -> Literal["images", "bytes"]:
        return "images"

    @property
    def subset(self) -> None:
        """See `PackSource.subset`. Single images have none: list the wanted images instead."""

    def plan(self, config: PackConfig) -> "ImagesPlan":
        """Assign the images to shards."""
        order = shuffled(len(self.entries), config.seed)
        sizes = self.sizes
        if sizes is None:
            sizes = np.full(len(self.entries), UNKNOWN_BYTES, np.int64)
        # A header block and whole blocks of data, for the image and for its label.
        lengths = BLOCK + -(-sizes // BLOCK) * BLOCK
        if len(self.entries) and self.entries[0].label is not None:
            lengths = lengths + 2 * BLOCK
        if self.sizes_beside is not None:
            lengths = lengths + self.sizes_beside
        bounds = shard_bounds(lengths[order], config.samples_per_shard, config.max_bytes)
        cost = int(lengths.sum()) + _COST_PER_IMAGE * len(order)
        return ImagesPlan(self, order, bounds, cost)


class ImagesPlan(PlannedRows):
    """Plan in which shard n holds the entries of its rows."""

    def __init__(
        self,
        source: ImagesSource,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        cost: int,
    ) -> None:
        super().__init__(order, bounds, cost)
        self._source = source

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:  # noqa: ARG002
        """See `PackPlan.task`."""
        entries = tuple((row, self._source.entries[row]) for row in self._rows(number).tolist())
        return ImagesTask(number, entries, self._source.is_far)


@dataclass(frozen=True, slots=True)
class ImagesTask:
    """Images of one shard, each with its row in the source."""

    number: int
    entries: tuple[tuple[int, ImageEntry], ...]
    is_far: bool
    variant: str = ""

    def read(self, fetcher: ImageFetcher, subset: Subset | None) -> Iterator[SamplesRead]:
        """See `ShardTask.read`."""
        assert subset is None, "a subset list chooses from shards"
        read = partial(read_entry, fetcher)
        yield from fetcher.in_order(read, self.entries) if self.is_far else map(read, self.entries)


def read_entry(fetcher: ImageFetcher, row: tuple[int, ImageEntry]) -> SamplesRead:
    """Return the sample of an entry, which is row `row[0]` of its source, or why it has none."""
    number, entry = row
    try:
        data = entry.read(fetcher)
        format_ = read_image_header(data).format
        beside = {extension: file.read(fetcher) for extension, file in entry.files.items()}
    except FetchError as error:
        return SamplesRead(1, skipped=(SkippedSample(entry.name, error.reason, error.lost),))
    except ImageError as error:
        return SamplesRead(1, skipped=(SkippedSample(entry.name, error.reason),))
    fields = {entry.extension or _EXTENSIONS.get(format_, "img"): data}
    if entry.label is not None:
        fields["cls"] = str(entry.label).encode()
    key = _safe_key(entry.key) or f"{number:08d}{safe_stem(entry.name)}"
    return SamplesRead(1, samples=(Sample(-1, number, key, fields | beside | dict(entry.fields)),))


def safe_stem(name: str) -> str:
    """'cats/My cát.v2.jpg' -> '-My_cat_v2': a key has no dot, slash, space or accent."""
    stem = Path(name).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:_MAX_STEM]
    return f"-{safe}" if safe else ""


def _safe_key(key: str | None) -> str:
    """'a.b c/../d' -> 'a_b_c/_/d': a dot would end the key, '..' would leave the folder."""
    parts = re.sub(r"[^\w/-]+", "_", key or "").split("/")
    return "/".join(part for part in parts if part)[:_MAX_KEY].rstrip("/")
