"""Labelled images in file order, each once: the input of an evaluation.

There are no random crops: an image becomes its central square in one size. Labels are those of
`samples.labels`, which training reads, too; samples without one are counted and left out.
"""

import itertools
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
from shards.inspect.class_names import ClassNames
from shards.records import Chunk, Reject, Sample
from shards.redaction import redact
from shards.samples.admission import admit, reject
from shards.samples.admission_config import AdmissionConfig
from shards.samples.labels import Label, describe_candidates, find_label, label_candidates
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.order import Order, OrderConfig
from shards.tars.chunk_reader import read_chunk
from shards.tars.sample_starts import SampleStartCache

# Share of the central square that is kept: 224 of 256 pixels of large crops, all of small ones.
_LARGE_SHARE, _SMALL_SIDE = 0.875, 64

# A set whose first samples have no label, this many of them, has none.
_MAX_UNLABELLED = 1000

BuildEngine = Callable[[CropRecipe], Engine]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Some images of a set.

    `images` (N, S, S, 3) are uint8 RGB. `labels` are N labels as the samples have them, `names` the
    same with the names of `classes.txt` in place of numbers. `rejects` counts samples that cannot
    be read, by reason, and `first` describes the first of each; `num_unlabelled` have no label.
    """

    images: NDArray[np.uint8]
    labels: tuple[Label, ...]
    names: tuple[Label, ...]
    rejects: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    num_unlabelled: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSet:
    """Shards of an evaluation. `label` names the label as in `samples.labels`; empty for the usual
    names."""

    manifest: Manifest
    reader: RangeReader
    label: str = ""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)


def iter_labelled(
    data: LabelledSet, size: int, build_engine: BuildEngine, num_threads: int = 2
) -> Iterator[LabelledImages]:
    """Yield every labelled image of `data` as `size` x `size` pixels, in order, in parts.

    Raises UserError if there is no label, BudgetExceeded if there is no image.
    """
    manifest = data.manifest
    config = OrderConfig(seed=0, chunk_bytes=manifest.suggest_chunk_bytes(), chunks_per_block=1)
    order = Order(manifest.shards, manifest.digest, config)
    part_reader = _PartReader(data, build_engine, size)
    rejects: Counter[str] = Counter()
    first: dict[str, str] = {}
    num_images = num_unlabelled = 0
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
            first = part.first | first
            num_images += len(part.labels)
            num_unlabelled += part.num_unlabelled
            if num_unlabelled >= _MAX_UNLABELLED and not num_images:
                break
            yield part
    if num_unlabelled and not num_images:
        raise UserError(part_reader.describe_no_label(num_unlabelled))
    if not num_images:
        raise BudgetExceeded(
            "every sample of the labelled shards was rejected; at least one image is needed; "
            "look at the reasons, and at the shards with `streamssl shards verify`",
            rejects,
            first,
        )


def central_square(size: int) -> CropRecipe:
    """Return a recipe with one view: the largest central square, without randomness."""
    return CropRecipe(
        (ViewGroup(num_views=1, size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0,
                   grey_probability=0.0),)
    )  # fmt: skip


class _PartReader:
    """Reads the labelled images of single chunks. Thread-safe."""

    def __init__(self, data: LabelledSet, build_engine: BuildEngine, size: int) -> None:
        self._data, self._build_engine, self._size = data, build_engine, size
        self._starts = SampleStartCache()
        self._names = ClassNames(data.manifest.shards, data.reader)
        self._unlabelled: Sample | None = None

    def read(self, chunk: Chunk) -> tuple[LabelledImages, bool]:
        """Return the labelled images of a chunk, and its `needs_walk`."""
        shard = self._data.manifest.shards[chunk.shard]
        cut = read_chunk(self._data.reader, shard, chunk, self._starts)
        rejects: list[Reject] = []
        admitted: list[tuple[Sample, ImageHeader]] = []
        labels: list[Label] = []
        num_unlabelled = 0
        for item in cut.found:
            image = item if isinstance(item, Reject) else admit(item, self._data.admission)
            if isinstance(image, Reject):
                rejects.append(image)
            elif isinstance(item, Sample):
                label = find_label(item, self._data.label)
                if label is None:
                    num_unlabelled += 1
                    self._unlabelled = self._unlabelled or item
                else:
                    admitted.append((item, image))
                    labels.append(label)
        engine = self._build_engine(central_square(self._size))
        images = [image for _, image in admitted]
        cropped = engine.crop(images, _parameters(images, self._size))
        rejects += [
            reject(admitted[row][0], self._data.admission, reason, detail)
            for row, reason, detail in cropped.failures
        ]
        kept = tuple(label for label, ok in zip(labels, cropped.ok, strict=True) if ok)
        names = tuple(self._names.name(chunk.shard, label) for label in kept)
        counts = dict(Counter[str](item.reason for item in rejects))
        first: dict[str, str] = {}
        for item in rejects:
            first.setdefault(item.reason, f"{redact(shard.uri)}, {item.place}: {item.detail}")
        part = LabelledImages(
            cropped.crops[0][:, 0], kept, names, counts, first, num_unlabelled=num_unlabelled
        )
        return part, cut.needs_walk

    def describe_no_label(self, num_samples: int) -> str:
        """Return the message for a set without any label."""
        sample, wanted = self._unlabelled, self._data.label
        assert sample is not None
        return (
            f"none of {num_samples} samples of {redact(self._data.manifest.patterns[0])} has a "
            f"label ({wanted or 'cls, label or class, as member or JSON field'}); an evaluation "
            f"needs them; {describe_candidates(label_candidates(sample))}"
        )


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
