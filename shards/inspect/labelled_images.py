"""Labelled images, each once, in file order: what an evaluation reads.

No random crops here: the central square, shrunk to one size. A label is the whole number in a
sample's `cls` member, or `label` or `cls` in its `json` member.
"""

import itertools
import json
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import use_one_core
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import CropRecipe, Parameter, ViewGroup, draw
from shards.errors import BudgetExceeded, UserError
from shards.images.image_header import ImageHeader
from shards.records import Chunk, Reject, Sample
from shards.redaction import redact
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.order import Order, OrderConfig
from shards.tars.chunk_reader import read_chunk
from shards.tars.sample_starts import SampleStartCache

# The share of the central square that is kept: 224 of 256 for large images, all of small ones.
_LARGE_SHARE, _SMALL_SIDE = 0.875, 64


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """`images` (N, S, S, 3) uint8 RGB, `labels` (N,) int64, and why other samples are missing."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rejects: dict[str, int] = field(default_factory=dict)


def iter_labelled(
    manifest: Manifest, reader: RangeReader, size: int, num_threads: int = 2
) -> Iterator[LabelledImages]:
    """Every labelled image of `manifest` as `size` x `size` pixels, some at a time, in order.

    Raises UserError at the first sample without a label, BudgetExceeded when no image is left.
    """
    config = OrderConfig(seed=0, chunk_bytes=manifest.suggest_chunk_bytes(), chunks_per_block=1)
    order = Order(manifest.shards, manifest.digest, config)
    rejects: Counter[str] = Counter()
    num_images = 0
    under_way: deque[tuple[Chunk, Future[tuple[LabelledImages, bool]]]] = deque()
    waiting = iter(range(order.num_chunks))
    read = partial(_read, manifest, reader, SampleStartCache(), size)
    irregular: set[int] = set()  # shards that must be walked from byte 0, see `tar`
    with ThreadPoolExecutor(num_threads, initializer=use_one_core) as pool:
        while True:
            for index in itertools.islice(waiting, 2 * num_threads - len(under_way)):
                chunk = order.chunk(index)
                chunk = replace(chunk, walked=chunk.shard in irregular)
                under_way.append((chunk, pool.submit(read, chunk)))
            if not under_way:
                break
            chunk, future = under_way.popleft()
            if chunk.shard in irregular and not chunk.walked:
                part, needs_walk = read(replace(chunk, walked=True))
            else:
                part, needs_walk = future.result()
            if needs_walk:
                irregular.add(chunk.shard)
            rejects.update(part.rejects)
            num_images += len(part.labels)
            yield part
    if not num_images:
        raise BudgetExceeded(
            "every sample of the labelled shards was rejected; at least one image is needed; "
            "look at the reasons, and at the shards with `streamssl shards verify`",
            rejects,
        )


def read_labelled(
    manifest: Manifest, reader: RangeReader, size: int, num_threads: int = 2
) -> LabelledImages:
    """All that `iter_labelled` gives, at once: for sets that fit in memory."""
    parts = list(iter_labelled(manifest, reader, size, num_threads))
    rejects: Counter[str] = Counter()
    for part in parts:
        rejects.update(part.rejects)
    images = np.concatenate([part.images for part in parts])
    return LabelledImages(images, np.concatenate([part.labels for part in parts]), dict(rejects))


def read_label(sample: Sample, uri: str) -> int:
    """The class number of a sample. Raises UserError when it has none."""
    try:
        return _find_label(sample)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        members = ", ".join(sorted(sample.fields))
        raise UserError(
            f"sample {sample.key!r} of {redact(uri)} has no label (members: {members}); every "
            f"sample needs a whole number in {sample.key}.cls, or as 'label' in {sample.key}.json: "
            "`streamssl shards pack` writes them for a folder with a sub-folder for each class"
        ) from error


def _find_label(sample: Sample) -> int:
    found = sample.fields.get("cls")
    if found is None:
        fields = json.loads(sample.fields.get("json", b"{}"))
        found = fields.get("label", fields.get("cls"))
    label = int(found)
    if isinstance(found, bool) or (isinstance(found, float) and label != found):
        raise ValueError(f"{found!r} is not a whole number")
    if not 0 <= label < 1 << 63:
        raise ValueError(f"{found!r} is no class number")
    return label


def central_square(size: int) -> CropRecipe:
    """One view: the largest central square, nothing drawn at random."""
    return CropRecipe(
        (ViewGroup(num_views=1, size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0,
                   grey_probability=0.0),)
    )  # fmt: skip


def _read(
    manifest: Manifest, reader: RangeReader, walks: SampleStartCache, size: int, chunk: Chunk
) -> tuple[LabelledImages, bool]:
    """The labelled images of a chunk, and whether it needs_walk."""
    shard = manifest.shards[chunk.shard]
    cut = read_chunk(reader, shard, chunk, walks)
    rejects: Counter[str] = Counter()
    admitted: list[ImageHeader] = []
    labels: list[int] = []
    for item in cut.found:
        image = item if isinstance(item, Reject) else admit(item, AdmissionConfig())
        if isinstance(image, Reject):
            rejects[image.reason] += 1
        elif isinstance(item, Sample):
            admitted.append(image)
            labels.append(read_label(item, shard.uri))
    cropped = OpenCVEngine(central_square(size)).crop(admitted, _parameters(admitted, size))
    rejects.update(reason for _, reason, _ in cropped.failures)
    kept = np.array(labels, dtype=np.int64)[cropped.ok]
    return LabelledImages(cropped.crops[0][:, 0], kept, dict(rejects)), cut.needs_walk


def _parameters(images: list[ImageHeader], size: int) -> NDArray[np.float32]:
    sizes = np.array([(p.height, p.width) for p in images], dtype=np.int64).reshape(-1, 2)
    none = np.zeros(len(images), dtype=np.int64)
    parameters = draw(central_square(size), 0, none, np.zeros((len(images), 2)), sizes)
    if size > _SMALL_SIDE:
        for low, high in ((Parameter.Y0, Parameter.Y1), (Parameter.X0, Parameter.X1)):
            margin = (parameters[..., high] - parameters[..., low]) * (1 - _LARGE_SHARE) / 2
            parameters[..., low] += margin
            parameters[..., high] -= margin
    return parameters
