"""Layout report: what is unusual in the samples of some chunks, a line each, with a remedy.

A wrong layout costs data without an error: members that lie apart make two samples of one, an image
that is not wanted is trained on, half of the labels are missing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from shards.inspect.pixel_counts import PixelCounts, probe_pixels
from shards.member_names import NameRule
from shards.records import Chunk, Reject, Sample, ShardInfo
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.samples.image_member import image_members, is_named
from shards.samples.key_rule import join_names
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.tars.chunk_reader import read_chunk, read_shard_head
from shards.tars.cutter import CutChunk

_NUM_SHARDS = 3
_PROBE_BYTES = 1 << 20
# Names in one line; the others are counted.
_MAX_NAMES = 4
# Share of groups without an image from which members may lie apart.
_APART = 0.1
# Members that describe an image; alone they are parts of a sample that lies apart.
_SIDE_CARS = frozenset({"cls", "json", "txt", "caption", "label", "id"})
# Keys that are remembered: enough for the chunks of a probe.
_MAX_KEYS = 1 << 17


@dataclass(slots=True)
class LayoutCounts:
    """Counts of samples by their members.

    `images_in_sample` counts samples by their number of images; `several` and `without` count the
    members of samples with several images, and without any. `with_image` counts the members beside
    images. `num_repeated` keys are those of the sample before; `num_again` were seen earlier.
    `pixels` counts what the headers of images say.
    """

    num_samples: int = 0
    num_members: int = 0
    num_hidden: int = 0
    num_repeated: int = 0
    num_again: int = 0
    images_in_sample: Counter[int] = field(default_factory=Counter)
    several: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    with_image: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    keys_with_image: set[str] = field(default_factory=set)
    keys_without: set[str] = field(default_factory=set)
    pixels: PixelCounts = field(default_factory=PixelCounts)

    def add(self, found: Iterable[Sample | Reject], num_hidden: int = 0) -> None:
        """Count the samples of a part of a shard, in file order."""
        self.num_hidden += num_hidden
        key = None
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
                self.examples.setdefault("several", _name(item, images[0]))
            if images:
                self.with_image.update(others)
                self.examples.setdefault("image", _name(item, images[0]))
            else:
                self.without.update(item.fields.keys())
                self.examples.setdefault("without", item.key)
            keys = self.keys_with_image if images else self.keys_without
            if item.key == key:
                self.num_repeated += 1
                self.examples.setdefault("repeated", item.key)
            elif item.key in keys:
                self.num_again += 1
                self.examples.setdefault("again", item.key)
            if len(keys) < _MAX_KEYS:
                keys.add(item.key)
            key = item.key

    def merge(self, other: "LayoutCounts") -> None:
        """Add the counts of another part."""
        self.num_samples += other.num_samples
        self.num_members += other.num_members
        self.num_hidden += other.num_hidden
        self.num_repeated += other.num_repeated
        self.num_again += other.num_again
        self.images_in_sample.update(other.images_in_sample)
        self.several.update(other.several)
        self.without.update(other.without)
        self.with_image.update(other.with_image)
        self.examples = other.examples | self.examples
        self.keys_with_image |= other.keys_with_image
        self.keys_without |= other.keys_without
        self.pixels.merge(other.pixels)

    @property
    def lies_apart(self) -> bool:
        """True if members of samples seem not to be adjacent: images here, their labels there."""
        alone = self.images_in_sample[0]
        if alone < _APART * self.num_samples or alone == self.num_samples:
            return False
        if 2 * len(self.keys_with_image & self.keys_without) >= alone:
            return True
        beside = sum(self.with_image[name] for name in self.without)
        return self.without.keys() <= _SIDE_CARS and beside <= sum(self.without.values())

    def lines(self, names: NameRule, admission: AdmissionConfig) -> Iterator[str]:
        """Yield what is unusual."""
        if names.keys == "last_dot":
            yield (
                f"file names have dots, such as {self.examples.get('image', '')}: keys end at the "
                "last dot of a name; --keys first_dot takes them as WebDataset does"
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
                f"before, such as {self.examples['again']!r}: each is a sample of its own, but a "
                "list of keys selects all of them"
            )
        yield from self.pixels.lines(admission.sixteen_bit)

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


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """Unusual properties of the data, a line each, and the counts that show them."""

    counts: LayoutCounts
    lines: tuple[str, ...]


def probe_layout(
    manifest: Manifest, reader: RangeReader, admission: AdmissionConfig
) -> LayoutReport:
    """Read up to 1 MiB at the start, in the middle and at the end of three shards of each source.

    The result says what a run would do with the data. Raises ShardUnreadable.
    """
    total, lines = LayoutCounts(), [*listing_lines(manifest)]
    num_sources = manifest.shards[-1].source + 1
    for source in range(num_sources):
        rows = [row for row, shard in enumerate(manifest.shards) if shard.source == source]
        counts, samples = LayoutCounts(), list[Sample]()
        for row in sorted({rows[0], rows[len(rows) // 2], rows[-1]})[:_NUM_SHARDS]:
            for cut in _probe(row, manifest.shards[row], reader):
                counts.add(cut.found, cut.num_hidden)
                samples += [item for item in cut.found if isinstance(item, Sample)]
        counts.pixels = probe_pixels(samples, admission)
        found = counts.lines(manifest.shards[rows[0]].names, admission)
        where = f"{redact(manifest.patterns[source])}: " if num_sources > 1 else ""
        lines += [f"{where}{line}" for line in found]
        total.merge(counts)
    return LayoutReport(total, tuple(lines))


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


def _name(sample: Sample, extension: str) -> str:
    return f"{sample.key}.{extension}" if extension else sample.key
