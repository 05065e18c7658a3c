"""Labelled images in file order, each once: the input of an evaluation.

There are no random crops: an image becomes its central square in one size. The label is the whole
number in the `cls` member of a sample, or in field `label` or `cls` of its `json` member.
"""

import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import Engine, use_one_core
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

# Share of the central square that is kept: 224 of 256 pixels of large crops, all of small ones.
_LARGE_SHARE, _SMALL_SIDE = 0.875, 64

BuildEngine = Callable[[CropRecipe], Engine]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """`images` (N, S, S, 3) uint8 RGB, `labels` (N,) int64, and the number of rejects by reason."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rejects: dict[str, int] = field(default_factory=dict)


def iter_labelled(
    manifest: Manifest,
    reader: RangeReader,
    size: int,
    build_engine: BuildEngine,
    num_threads: int = 2,
) -> Iterator[LabelledImages]:
    """Yield every labelled image of `manifest` as `size` x `size` pixels, in order, in parts.

    Raises UserError at the first sample without a label, BudgetExceeded if there is no image.
    """
    config = OrderConfig(seed=0, chunk_bytes=manifest.suggest_chunk_bytes(), chunks_per_block=1)
    order = Order(manifest.shards, manifest.digest, config)
    part_reader = _PartReader(manifest, reader, build_engine, size)
    rejects: Counter[str] = Counter()
    num_images = 0
    pending: deque[tuple[Chunk, Future[tuple[LabelledImages, bool]]]] = deque()
    remaining = iter(range(order.num_chunks))
    irregular: set[int] = set()  # shards that must be walked from byte 0, see `shards.tars.cutter`
    with ThreadPoolExecutor(num_threads, initializer=use_one_core) as pool:
        while True:
            for index in itertools.islice(remaining, 2 * num_threads - len(pending)):
                chunk = order.chunk(index)
                chunk = replace(chunk, walked=chunk.shard in irregular)
                pending.append((chunk, pool.submit(part_reader.read, chunk)))
            if not pending:
                break
            chunk, future = pending.popleft()
            if chunk.shard in irregular and not chunk.walked:
                part, needs_walk = part_reader.read(replace(chunk, walked=True))
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


def read_class_number(sample: Sample, uri: str) -> int:
    """Return the class number of a sample. Raises UserError if it has none."""
    try:
        return _find_class_number(sample)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        members = ", ".join(sorted(sample.fields))
        raise UserError(
            f"sample {sample.key!r} of {redact(uri)} has no label (members: {members}); every "
            f"sample needs a whole number in {sample.key}.cls, or as 'label' in {sample.key}.json: "
            "`streamssl shards pack` writes them for a folder with a sub-folder for each class"
        ) from error


def _find_class_number(sample: Sample) -> int:
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
    """Return a recipe with one view: the largest central square, without randomness."""
    return CropRecipe(
        (ViewGroup(num_views=1, size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0,
                   grey_probability=0.0),)
    )  # fmt: skip


class _PartReader:
    """Reads the labelled images of single chunks. Thread-safe."""

    def __init__(
        self, manifest: Manifest, reader: RangeReader, build_engine: BuildEngine, size: int
    ) -> None:
        self._manifest, self._reader, self._size = manifest, reader, size
        self._build_engine = build_engine
        self._starts = SampleStartCache()

    def read(self, chunk: Chunk) -> tuple[LabelledImages, bool]:
        """Return the labelled images of a chunk, and its `needs_walk`."""
        shard = self._manifest.shards[chunk.shard]
        cut = read_chunk(self._reader, shard, chunk, self._starts)
        rejects: Counter[str] = Counter()
        admitted: list[ImageHeader] = []
        labels: list[int] = []
        for item in cut.found:
            image = item if isinstance(item, Reject) else admit(item, AdmissionConfig())
            if isinstance(image, Reject):
                rejects[image.reason] += 1
            elif isinstance(item, Sample):
                admitted.append(image)
                labels.append(read_class_number(item, shard.uri))
        engine = self._build_engine(central_square(self._size))
        cropped = engine.crop(admitted, _parameters(admitted, self._size))
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
