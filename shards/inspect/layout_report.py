"""Layout report: what is unusual in the samples of some chunks, a line each, with a remedy.

A wrong layout costs data without an error: members that lie apart make two samples of one, an image
that is not wanted is trained on, half of the labels are missing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from shards.errors import ConfigError
from shards.inspect.pixel_counts import PixelCounts, probe_pixels
from shards.member_names import NameRule
from shards.records import Chunk, Reject, Sample, ShardInfo
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.samples.image_member import image_members, is_named
from shards.samples.key_rule import join_names
from shards.samples.labels import (
    USUAL_NAMES,
    Label,
    describe_candidates,
    find_label,
    label_candidates,
)
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.tars.chunk_reader import read_chunk, read_shard_head
from shards.tars.cutter import CutChunk

_NUM_SHARDS = 3
_PROBE_BYTES = 1 << 20
# Names in one line; the others are counted.
_MAX_NAMES = 4
# Different labels that are counted; more are as good as all different.
_MAX_LABELS = 10_000
# Share of groups without an image from which members may lie apart.
_APART = 0.1
# Members that describe an image; alone they are parts of a sample that lies apart.
_SIDE_CARS = frozenset({"cls", "json", "txt", "caption", "label", "id"})


@dataclass(slots=True)
class LayoutCounts:
    """Counts of samples by their members.

    `images_in_sample` counts samples by their number of images; `several` and `without` count the
    members of samples with several images, and without any. `with_image` counts the members beside
    images. `num_repeated` keys are those of the sample before, `num_again` were seen earlier in the
    shard, and `num_apart` groups without an image have the key of an image in it. Of the samples
    with an image `num_labelled` have the label that was asked for; `labels` counts its values, up
    to 10,000 of them. `pixels` counts what the headers of images say.
    """

    num_samples: int = 0
    num_members: int = 0
    num_hidden: int = 0
    num_repeated: int = 0
    num_again: int = 0
    num_apart: int = 0
    num_labelled: int = 0
    labels: Counter[Label] = field(default_factory=Counter)
    candidates: tuple[str, ...] = ()
    images_in_sample: Counter[int] = field(default_factory=Counter)
    several: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    with_image: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    pixels: PixelCounts = field(default_factory=PixelCounts)

    def add(
        self,
        found: Iterable[Sample | Reject],
        keys: "ShardKeys | None" = None,
        label: str | None = None,
        key_before: str | None = None,
    ) -> None:
        """Count the samples of a part of a shard, in file order.

        `keys` are those of the parts before it, and `key_before` is the last of them. A `label` of
        "" is any of the usual names.
        """
        key = key_before
        for item in found:
            if isinstance(item, Reject):
                key = None
                continue
            self.num_samples += 1
            self.num_members += len(item.fields)
            images = image_members(item)
            self.images_in_sample[min(len(images), 2)] += 1
            others = item.fields.keys() - set(images)
            if len(images) > 1:
                self.several.update(images)
                self.examples.setdefault("several", item.member(images[0]))
            if images:
                self.with_image.update(others)
                self.examples.setdefault("image", item.member(images[0]))
                self._add_label(item, label)
            else:
                self.without.update(item.fields.keys())
                self.examples.setdefault("without", item.key)
            is_again = keys is not None and keys.add(item.key, has_image=bool(images))
            if item.key == key:
                self.num_repeated += 1
                self.examples.setdefault("repeated", item.key)
            elif is_again:
                self.num_again += 1
                self.examples.setdefault("again", item.key)
            key = item.key

    def _add_label(self, sample: Sample, name: str | None) -> None:
        label = None if name is None else find_label(sample, name)
        if label is not None:
            self.num_labelled += 1
            if len(self.labels) < _MAX_LABELS or label in self.labels:
                self.labels[label] += 1
        elif name and not self.candidates:
            self.candidates = tuple(label_candidates(sample))

    def merge(self, other: "LayoutCounts") -> None:
        """Add the counts of another part."""
        self.num_samples += other.num_samples
        self.num_members += other.num_members
        self.num_hidden += other.num_hidden
        self.num_repeated += other.num_repeated
        self.num_again += other.num_again
        self.num_apart += other.num_apart
        self.num_labelled += other.num_labelled
        for value, count in other.labels.items():
            if len(self.labels) < _MAX_LABELS or value in self.labels:
                self.labels[value] += count
        self.candidates = self.candidates or other.candidates
        self.images_in_sample.update(other.images_in_sample)
        self.several.update(other.several)
        self.without.update(other.without)
        self.with_image.update(other.with_image)
        self.examples = other.examples | self.examples
        self.pixels.merge(other.pixels)

    @property
    def lies_apart(self) -> bool:
        """True if members of samples seem not to be adjacent: images here, their labels there."""
        alone = self.images_in_sample[0]
        if alone < _APART * self.num_samples or alone == self.num_samples:
            return False
        if 2 * self.num_apart >= alone:
            return True
        beside = sum(self.with_image[name] for name in self.without)
        return self.without.keys() <= _SIDE_CARS and beside <= sum(self.without.values())

    def lines(self, names: NameRule, admission: AdmissionConfig) -> Iterator[str]:
        """Yield what is unusual in the members; `pixels` has lines of its own."""
        if names.keys == "last_dot":
            yield (
                f"file names have dots, such as {self.examples.get('image', '')}: keys end at the "
                "last dot of a name, as with --keys last_dot; WebDataset, and --keys first_dot, "
                "end them at the first dot"
            )
        if self.num_hidden:
            yield f"{self.num_hidden:,} hidden files, such as .DS_Store, are part of no sample"
        yield from self._about_images(admission.image_members)
        if self.num_repeated:
            yield (
                f"{self.num_repeated:,} of {self.num_samples:,} samples have the key of the sample "
                f"before, such as {self.examples['repeated']!r}: each is a sample of its own, and "
                "the last one takes the other members"
            )
        if self.num_again and not self.lies_apart:
            yield (
                f"{self.num_again:,} of {self.num_samples:,} samples have a key that was seen "
                f"before in their shard{_such_as(self.examples.get('again'))}: each is a sample of "
                "its own, but a list of keys selects all of them"
            )

    def _about_images(self, wanted: Sequence[str]) -> Iterator[str]:
        alone, total = self.images_in_sample[0], self.num_samples
        if self.lies_apart:
            yield (
                f"{alone:,} of {total:,} groups of members have no image, only "
                f"{join_names(self.without, _MAX_NAMES)}: members of one sample lie apart, so "
                "labels are lost; `streamssl shards pack SHARDS OUT` joins them by their keys"
            )
        elif alone:
            yield (
                f"{alone:,} of {total:,} samples have no image, such as "
                f"{self.examples['without']!r}; their members are "
                f"{join_names(self.without, _MAX_NAMES)}"
            )
        if self.images_in_sample[2] and not wanted:
            used, *others = self.several
            best = next((name for name in others if is_named(name, "image")), others[0])
            yield (
                f"{self.images_in_sample[2]:,} of {total:,} samples have several images "
                f"({join_names(self.several, _MAX_NAMES)}); {used} is used: name another, such as "
                f"--image-member {best}, or --keys last_dot if each is a sample of its own"
            )


class ShardKeys:
    """Keys of one shard that were seen, of samples with an image and of others."""

    def __init__(self) -> None:
        self._with_image: set[str] = set()
        self._others: set[str] = set()

    def add(self, key: str, *, has_image: bool) -> bool:
        """Add a key; return True if a sample of the same kind had it before."""
        keys = self._with_image if has_image else self._others
        is_known = key in keys
        keys.add(key)
        return is_known

    @property
    def num_apart(self) -> int:
        """Number of keys that samples with an image and others share."""
        return len(self._with_image & self._others)


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """Unusual properties of the data, a line each, and the counts that show them."""

    counts: LayoutCounts
    lines: tuple[str, ...]


def probe_layout(
    manifest: Manifest,
    reader: RangeReader,
    admission: AdmissionConfig,
    label: str = "",
    *,
    with_pixels: bool = True,
) -> LayoutReport:
    """Read up to 1 MiB at the start, in the middle and at the end of three shards of each source.

    The result says what a run that learns from `label` would do with the data, without its images
    if `with_pixels` is False. Raises ConfigError if no sample has the label; ShardUnreadable.
    """
    total, lines = LayoutCounts(), [*listing_lines(manifest)]
    num_sources = manifest.shards[-1].source + 1
    for source in range(num_sources):
        rows = [row for row, shard in enumerate(manifest.shards) if shard.source == source]
        counts, samples = LayoutCounts(), list[Sample]()
        for row in sorted({rows[0], rows[len(rows) // 2], rows[-1]})[:_NUM_SHARDS]:
            keys = ShardKeys()
            for cut in _probe(row, manifest.shards[row], reader):
                counts.add(cut.found, keys, label or None)
                counts.num_hidden += cut.num_hidden
                samples += [item for item in cut.found if isinstance(item, Sample)]
            counts.num_apart += keys.num_apart
        _check_image_member(samples, admission)
        found = [*counts.lines(manifest.shards[rows[0]].names, admission)]
        if with_pixels:
            counts.pixels = probe_pixels(samples, admission)
            found += counts.pixels.lines(admission.sixteen_bit)
        where = f"{redact(manifest.patterns[source])}: " if num_sources > 1 else ""
        lines += [f"{where}{line}" for line in found]
        total.merge(counts)
    if label:
        _check_labels(total, label, lines)
        lines += label_lines(total, label)
    return LayoutReport(total, tuple(lines))


def _check_image_member(samples: Sequence[Sample], admission: AdmissionConfig) -> None:
    """Raise ConfigError if samples have images, and none is the one that the user named."""
    wanted = admission.image_members
    found = Counter(name for sample in samples for name in image_members(sample))
    if not wanted or not found or any(is_named(name, want) for name in found for want in wanted):
        return
    raise ConfigError(
        f"image_member={admission.image_member!r}, but none of the first {len(samples):,} samples "
        f"has it; their images are {join_names(found, _MAX_NAMES)}: name one with --image-member, "
        "several in order of preference after commas, or leave it out"
    )


def _check_labels(counts: LayoutCounts, label: str, lines: Sequence[str]) -> None:
    if counts.num_labelled or not counts.num_samples:
        return
    none = f"label={label!r}, but none of the first {counts.num_samples:,} samples has it"
    if counts.lies_apart:
        raise ConfigError(f"{none}: {'; '.join(lines)}")
    remedy = describe_candidates(counts.candidates)
    raise ConfigError(f"{none}; {remedy}, or take a recipe that needs no label")


def label_lines(counts: LayoutCounts, label: str) -> Iterator[str]:
    """Yield what is unusual in the labels; "" stands for those with the usual names."""
    num_images = counts.num_samples - counts.images_in_sample[0]
    named = f"label {label!r}" if label else f"label ({', '.join(USUAL_NAMES)})"
    if counts.num_labelled < num_images:
        yield f"{num_images - counts.num_labelled:,} of {num_images:,} images have no {named}"
    if len(counts.labels) == counts.num_labelled > 1:
        yield (
            f"no two of {counts.num_labelled:,} images have the same {named}, so none has a "
            "positive: name a label that images share with --label"
        )


def _probe(row: int, shard: ShardInfo, reader: RangeReader) -> Iterator[CutChunk]:
    size = shard.num_bytes
    if shard.whole:
        yield read_shard_head(reader, shard, _PROBE_BYTES)
    elif size <= 3 * _PROBE_BYTES:
        yield read_chunk(reader, shard, Chunk(row, 0, size))
    else:
        for start in (0, size // 2, size - _PROBE_BYTES):
            yield read_chunk(reader, shard, Chunk(row, start, start + _PROBE_BYTES))


def listing_lines(manifest: Manifest) -> Iterator[str]:
    """Yield what is unusual in the listing of the shards."""
    if manifest.empty:
        yield (
            f"{_first(manifest.empty)} holds 0 bytes and is left out: write it again, and start a "
            "new run"
        )
    if manifest.unfinished:
        yield (
            f"{_first(manifest.unfinished)} has no _stats.json beside it, as other shards have: "
            "its download is unfinished, so wait for its end, or leave it out of --data"
        )


def _first(uris: Sequence[str]) -> str:
    more = f" (and {len(uris) - 1:,} more)" if len(uris) > 1 else ""
    return f"{redact(uris[0])}{more}"


def _such_as(example: str | None) -> str:
    return "" if example is None else f", such as {example!r}"
