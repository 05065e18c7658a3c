"""Crop samples: admission, the user's predicate, the engine.

The result for a sample depends on the sample, the epoch and the settings, not on its neighbours.
So a chunk may be cropped at once, or sample by sample in an `isolated_process`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CroppedImages, Engine
from shards.crops.recipe import CropRecipe, draw
from shards.crops.verify_engine import VerifyingEngine, as_rows
from shards.images.image_header import ImageHeader, read_image_header
from shards.records import Reject, Sample
from shards.samples.admission import reject
from shards.samples.admission_config import AdmissionConfig
from shards.samples.class_numbers import ClassNumbers
from shards.samples.image_member import find_image
from shards.samples.labels import read_labels
from shards.samples.predicate import resolve_predicate
from shards.samples.sample_check import SampleCheck
from shards.samples.subset import Subset
from shards.samples.synthetic_images import encode_jpeg, make_image
from shards.stores.range_reader import SourceConfig

_PLAIN_SIDE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class CropJob:
    """Everything that a reader needs besides the turn. Pickled to each reader once.

    Every reader calls `build_engine` once. `subset` None means all samples. `label` names the
    source of labels (see `samples.labels`); empty means no labels. `class_numbers` gives the
    classes of shards that were packed apart one number each. `sources` configures transport
    and does not change the data. With `only_verify` readers return verified encoded images, and
    trainers crop them; `with_bits` then measures the bits in use. Raises ConfigError if the
    predicate of `admission` is not found.
    """

    recipe: CropRecipe
    seed: int
    admission: AdmissionConfig
    build_engine: Callable[[], Engine]
    subset: Subset | None = None
    sources: SourceConfig = field(default_factory=SourceConfig)
    label: str = ""
    class_numbers: ClassNumbers | None = None
    only_verify: bool = False
    with_bits: bool = False

    def __post_init__(self) -> None:
        if self.admission.predicate:
            resolve_predicate(self.admission.predicate)


@dataclass(frozen=True, slots=True)
class CroppedSamples:
    """Crops of samples: `crops` and `labels` as in `ChunkCrops`, one row for each kept sample, in
    order; `rejects` of the others; `crashed_images`, digests of images that crashed a decoder."""

    crops: tuple[NDArray[np.uint8], ...]
    rejects: tuple[Reject, ...]
    crashed_images: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None


class SampleCropper:
    """Admits, decodes and crops samples. Create it in the thread that uses it."""

    def __init__(self, job: CropJob) -> None:
        self._job = job
        self._judge = SampleCheck(job.admission)
        if job.only_verify:
            verifying = VerifyingEngine(job.recipe, with_bits=job.with_bits)
            self._images = ImageCropper(verifying, job.seed)
        else:
            self._images = ImageCropper(job.build_engine(), job.seed)

    def crop(self, samples: Sequence[Sample], epoch: int) -> CroppedSamples:
        """Return every sample as a row of crops or as a reject. Decodes admitted images only."""
        admitted: list[tuple[Sample, ImageHeader]] = []
        rejects: list[Reject] = []
        for sample in samples:
            image = self._judge(sample)
            if isinstance(image, Reject):
                rejects.append(image)
            else:
                admitted.append((sample, image))
        ids = np.array([(s.shard, s.offset) for s, _ in admitted], dtype=np.int64).reshape(-1, 2)
        images = [image for _, image in admitted]
        cropped = self._images.crop(images, ids, np.full(len(ids), epoch, np.int64))
        rejects += [
            reject(admitted[row][0], self._job.admission, reason, detail)
            for row, reason, detail in cropped.failures
        ]
        labels = None
        if self._job.label:
            kept = [sample for (sample, _), ok in zip(admitted, cropped.ok, strict=True) if ok]
            labels = self._labels(kept, epoch)
        return CroppedSamples(cropped.on_host(), tuple(rejects), labels=labels)

    def _labels(self, samples: Sequence[Sample], epoch: int) -> NDArray[np.int64]:
        labels, numbers = read_labels(samples, self._job.label, epoch), self._job.class_numbers
        if numbers is None:
            return labels
        rows = zip(samples, labels.tolist(), strict=True)
        return np.array([numbers.number(s.shard, label) for s, label in rows], dtype=np.int64)

    def try_out(self) -> bool:
        """Return True if the engine crops a plain image."""
        image = read_image_header(encode_jpeg(make_image(0, 0, 0, _PLAIN_SIDE)))
        ids, epochs = np.zeros((1, 2), np.int64), np.zeros(1, np.int64)
        return bool(self._images.crop([image], ids, epochs).ok.all())


class ImageCropper:
    """Crops admitted images; the crops of an image depend only on its id and epoch."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine, self._seed = engine, seed

    def crop(
        self, images: Sequence[ImageHeader], ids: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> CroppedImages:
        """Return crops of N images, of the samples `ids` (N, 2) in `epochs` (N,)."""
        sizes = np.array([(p.height, p.width) for p in images], dtype=np.int64).reshape(-1, 2)
        parameters = draw(self._engine.recipe, self._seed, epochs, ids, sizes)
        return self._engine.crop(images, parameters)


def no_crops(job: CropJob) -> tuple[NDArray[np.uint8], ...]:
    """Return the result of a job for no sample: arrays with zero rows, of the right shape."""
    if job.only_verify:
        return (as_rows([]),)
    return tuple(
        np.empty((0, group.num_views, group.size, group.size, 3), np.uint8)
        for group in job.recipe.groups
    )


def image_digest(sample: Sample, admission: AdmissionConfig) -> str:
    """Return the digest of the image bytes of a sample: 32 hex digits."""
    image = find_image(sample, admission.image_members) or b""
    return blake2b(image, digest_size=16).hexdigest()
