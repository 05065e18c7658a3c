"""Looks through whole shards without training: `verify` finds what is wrong, `stats` counts."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from shards.admission import AdmissionConfig, admit, reject
from shards.chunks import read_chunk
from shards.crops.engine import use_one_core
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import draw
from shards.labelled import central_square
from shards.manifest import Manifest
from shards.order import Order, OrderConfig
from shards.picture import Picture
from shards.records import Chunk, Reject, Sample
from shards.sources import RangeReader

# Whole pictures need not be looked at closely to know that they can be decoded.
_PROBE_SIDE = 16


@dataclass(slots=True)
class Survey:
    """What was found. `examples` keeps the first reject of every reason, with where it lies."""

    num_shards: int = 0
    num_bytes: int = 0
    num_samples: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    extensions: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Reject] = field(default_factory=dict)
    sides: list[int] = field(default_factory=list)
    num_pixels: int = 0
    picture_bytes: int = 0

    def merge(self, other: "Survey") -> None:
        """Add the findings of another part of the shards."""
        for name in ("num_samples", "num_pixels", "picture_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.formats.update(other.formats)
        self.extensions.update(other.extensions)
        self.rejects.update(other.rejects)
        self.sides.extend(other.sides)
        for reason, example in other.examples.items():
            self.examples.setdefault(reason, example)

    def refuse(self, reject: Reject) -> None:
        """Count one reject."""
        self.rejects[reject.reason] += 1
        self.examples.setdefault(reject.reason, reject)


def survey(
    manifest: Manifest,
    reader: RangeReader,
    admission: AdmissionConfig,
    *,
    depth: Literal["headers", "pixels"],
    num_threads: int = 2,
    progress: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Read every shard once; with depth "pixels" every admitted picture is decoded as well.

    `progress` is told the bytes of every finished chunk. Raises ShardUnreadable.
    """
    config = OrderConfig(seed=0, chunk_bytes=manifest.suggest_chunk_bytes(), chunks_per_block=1)
    order = Order(manifest.shards, manifest.digest, config)
    total = Survey(num_shards=len(manifest.shards), num_bytes=manifest.num_bytes)

    def look(index: int) -> tuple[Chunk, Survey]:
        chunk = order.chunk(index)
        found = read_chunk(reader, manifest.shards[chunk.shard], chunk).found
        return chunk, _look(found, admission, depth)

    with ThreadPoolExecutor(num_threads, initializer=use_one_core) as pool:
        for chunk, part in pool.map(look, range(order.num_chunks)):
            total.merge(part)
            progress(chunk.stop - chunk.start)
    return total


def _look(
    found: list[Sample | Reject], admission: AdmissionConfig, depth: Literal["headers", "pixels"]
) -> Survey:
    part = Survey(num_samples=len(found))
    samples: list[Sample] = []
    pictures: list[Picture] = []
    for item in found:
        if isinstance(item, Sample):
            part.extensions.update(item.fields.keys())
        picture = item if isinstance(item, Reject) else admit(item, admission)
        if isinstance(picture, Reject):
            part.refuse(picture)
        elif isinstance(item, Sample):
            samples.append(item)
            pictures.append(picture)
    if depth == "pixels":
        kept = _decodable(part, samples, pictures)
        pictures = [picture for picture, ok in zip(pictures, kept, strict=True) if ok]
    for picture in pictures:
        part.formats[picture.format] += 1
        part.sides.append(min(picture.height, picture.width))
        part.num_pixels += picture.height * picture.width
        part.picture_bytes += len(picture.data)
    return part


def _decodable(part: Survey, samples: list[Sample], pictures: list[Picture]) -> list[bool]:
    """Decode every picture; what fails is counted as it would be in a run."""
    recipe = central_square(_PROBE_SIDE)
    sizes = np.array([(p.height, p.width) for p in pictures], dtype=np.int64).reshape(-1, 2)
    ids = np.zeros((len(pictures), 2), dtype=np.int64)
    cropped = OpenCVEngine(recipe).crop(pictures, draw(recipe, 0, ids[:, 0], ids, sizes))
    for index, reason, detail in cropped.failures:
        part.refuse(reject(samples[index], reason, detail))
    return [bool(ok) for ok in cropped.ok]
