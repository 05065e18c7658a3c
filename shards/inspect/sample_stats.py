"""Statistics of many samples: counts, and histograms that stay small at 10^9 images."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shards.images.image_header import ImageHeader
from shards.inspect.layout_report import LayoutCounts
from shards.records import Reject


class RoundedHistogram:
    """Counts of positive numbers rounded to three digits: about a thousand bins per decade."""

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()

    def add(self, value: float) -> None:
        self._counts[float(f"{value:.3g}")] += 1

    def merge(self, other: "RoundedHistogram") -> None:
        """Add the counts of `other`."""
        self._counts.update(other._counts)

    def percentiles(self, percents: Iterable[int]) -> dict[str, float]:
        """Return {'p50': smallest value that 50 % do not exceed, ...}; empty without values."""
        found: dict[str, float] = {}
        values = sorted(self._counts.items())
        total = self._counts.total()
        for percent in percents if values else ():
            passed = itertools.accumulate(count for _, count in values)
            index = next(i for i, count in enumerate(passed) if 100 * count >= percent * total)
            value = values[index][0]
            found[f"p{percent}"] = int(value) if value == int(value) else value
        return found


@dataclass(slots=True)
class SampleStats:
    """Statistics of the samples in a part of the shards.

    `examples` keeps, for every reason, the reject that comes first in the shards.
    """

    num_samples: int = 0
    num_images: int = 0
    num_pixels: int = 0
    image_bytes: int = 0
    num_decoded: int = 0
    decode_seconds: float = 0.0
    formats: Counter[str] = field(default_factory=Counter)
    extensions: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Reject] = field(default_factory=dict)
    shorter_sides: RoundedHistogram = field(default_factory=RoundedHistogram)
    longer_sides: RoundedHistogram = field(default_factory=RoundedHistogram)
    layout: LayoutCounts = field(default_factory=LayoutCounts)
    aspect_ratios: RoundedHistogram = field(default_factory=RoundedHistogram)
    sizes: RoundedHistogram = field(default_factory=RoundedHistogram)

    def add_reject(self, reject: Reject) -> None:
        self.rejects[reject.reason] += 1
        self.layout.pixels.add_reject(reject)
        self._keep_first(reject)

    def add_image(self, image: ImageHeader) -> None:
        """Count an image that admission accepts."""
        short, long = sorted((image.height, image.width))
        self.num_images += 1
        self.num_pixels += short * long
        self.image_bytes += len(image.data)
        self.formats[image.format] += 1
        self.layout.pixels.add(image)
        self.shorter_sides.add(short)
        self.longer_sides.add(long)
        self.aspect_ratios.add(image.width / image.height)
        self.sizes.add(len(image.data))

    def merge(self, other: "SampleStats") -> None:
        """Add the statistics of another part of the shards."""
        self.num_samples += other.num_samples
        self.num_images += other.num_images
        self.num_pixels += other.num_pixels
        self.image_bytes += other.image_bytes
        self.num_decoded += other.num_decoded
        self.decode_seconds += other.decode_seconds
        self.formats.update(other.formats)
        self.layout.merge(other.layout)
        self.extensions.update(other.extensions)
        self.rejects.update(other.rejects)
        for mine, others in (
            (self.shorter_sides, other.shorter_sides),
            (self.longer_sides, other.longer_sides),
            (self.aspect_ratios, other.aspect_ratios),
            (self.sizes, other.sizes),
        ):
            mine.merge(others)
        for reject in other.examples.values():
            self._keep_first(reject)

    def _keep_first(self, reject: Reject) -> None:
        first = self.examples.get(reject.reason)
        if first is None or (reject.shard, reject.offset) < (first.shard, first.offset):
            self.examples[reject.reason] = reject
