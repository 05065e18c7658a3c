"""Plan of a pack: one task for each shard, fixed before any image is read.

The content of a shard depends only on the listing and the settings, so each shard can be made
alone, on any process, again. A file that is not an image makes its shard smaller, and no other
image changes its shard.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.pack.fetch import ImageFetcher
from shards.records import Sample
from shards.samples.subset import Subset

# Version of the layout; increased when the same input would give other bytes.
_LAYOUT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Assignment of samples to shards. A shard ends before it would pass either limit.

    Sizes are those in the listing of a folder or a store; an image from the web counts as 256 KiB.
    """

    samples_per_shard: int = 10_000
    """Maximum number of samples of a shard; approximate when shards are packed again."""
    max_bytes: int = 1 << 28
    """Maximum size of a shard."""
    seed: int | None = 0
    """Seed of the order, so that shards are not sorted by class; None keeps the source's order."""
    pattern: str = "shard-{:06d}.tar"
    """File name of a shard, with one number."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or self.max_bytes < 1:
            raise ConfigError(
                f"samples_per_shard={self.samples_per_shard} and max_bytes={self.max_bytes}; "
                f"a shard holds at least 1 sample and 1 byte; raise them"
            )
        if not _is_pattern(self.pattern):
            raise ConfigError(
                f"the shard pattern {self.pattern!r} does not number the shards; allowed is a "
                f"file name with one number that ends in .tar, such as 'shard-{{:06d}}.tar'"
            )


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A sample that is left out of its shard. `lost`: a network failure that may pass."""

    name: str
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class SamplesRead:
    """Some samples of a shard in their order, and those that were left out between them.

    `units` is the progress in units of the source. `num_unselected` samples are not in the subset
    list, `num_hidden` files of operating systems are in none. `leaps` holds input shards in which a
    member is longer than a chunk.
    """

    units: int
    samples: Sequence[Sample] = ()
    skipped: Sequence[SkippedSample] = ()
    num_unselected: int = 0
    leaps: tuple[int, ...] = ()
    num_hidden: int = 0


class ShardTask(Protocol):
    """Task to write one shard. Sent to worker processes by pickle."""

    @property
    def number(self) -> int: ...

    @property
    def variant(self) -> str:
        """Part of the shard's identity that the inputs of the whole pack do not contain."""

    def read(self, fetcher: ImageFetcher, subset: Subset | None) -> Iterator[SamplesRead]:
        """Yield all samples of the shard, in order."""


class PackPlan(Protocol):
    """Shards of a pack."""

    num_shards: int

    def units(self, number: int) -> int:
        """Return the work of shard `number`, in units of the source."""

    def cost(self) -> int:
        """Return the work of all shards, as a number of bytes to copy."""

    def variant(self, number: int, irregular: frozenset[int]) -> str:
        """Return the `variant` of the task of shard `number`."""

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:
        """Return the task of shard `number`; input shards in `irregular` are read from byte 0."""


class PlannedRows:
    """Base of plans in which shard n holds the rows `rows[bounds[n] : bounds[n + 1]]`.

    A row is a unit of the source, and the plan costs `cost`, unless a subclass says otherwise.
    """

    def __init__(self, rows: NDArray[np.int64], bounds: NDArray[np.int64], cost: int) -> None:
        self._planned, self._bounds, self._cost = rows, bounds, cost
        self.num_shards = len(bounds) - 1

    def units(self, number: int) -> int:
        """See `PackPlan.units`."""
        return len(self._rows(number))

    def cost(self) -> int:
        """See `PackPlan.cost`."""
        return self._cost

    def variant(self, number: int, irregular: frozenset[int]) -> str:  # noqa: ARG002
        """See `PackPlan.variant`."""
        return ""

    def _rows(self, number: int) -> NDArray[np.int64]:
        return self._planned[self._bounds[number] : self._bounds[number + 1]]


class PackSource(Protocol):
    """Input of a pack: single images, or shards."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Digest of the content: sources with the same digest give the same shards."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of files that cannot be packed, by reason."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user: what was found, and what is unusual."""

    @property
    def unit(self) -> Literal["images", "bytes"]: ...

    @property
    def subset(self) -> Subset | None:
        """List of the samples to take from shards."""

    def plan(self, config: PackConfig) -> PackPlan: ...


def describe(source: PackSource, config: PackConfig, **others: Any) -> dict[str, Any]:
    """Return all settings that decide the written bytes, as JSON values."""
    fields = {"layout": _LAYOUT, **asdict(config), "source": source.digest, **others}
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain


def shuffled(num: int, seed: int | None, *purpose: int) -> NDArray[np.int64]:
    """Return range(num) in the order of the seed; None keeps it."""
    order = np.arange(num)
    if seed is None:
        return order
    text = "/".join(map(str, ("pack", seed, num, *purpose)))
    key = blake2b(text.encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    return generator.permutation(num)


def shard_bounds(sizes: NDArray[np.int64], max_entries: int, max_bytes: int) -> NDArray[np.int64]:
    """Return the bounds of shards with at most so many entries and bytes, and at least one entry.

    Shard n takes the entries [bounds[n], bounds[n + 1]).
    """
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        fit = int(np.searchsorted(ends, before + max_bytes, side="right"))
        bounds.append(min(max(fit, start + 1), start + max_entries, len(sizes)))
    return np.array(bounds, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStats:
    """Content of a side-car: statistics of one shard, and the proof that it is complete.

    `made_from` is the digest of the inputs. `left_out` holds the names of samples that are not in
    the shard, by reason.
    """

    made_from: str
    number: int
    num_samples: int
    num_bytes: int
    digest: str
    num_renamed: int = 0
    num_unselected: int = 0
    num_hidden: int = 0
    leaps: tuple[int, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "ShardStats | None":
        """Parse the output of `to_json`; return None for anything else."""
        try:
            fields = json.loads(data)
            return cls(**{**fields, "leaps": tuple(fields["leaps"])})
        except (ValueError, TypeError, KeyError):
            return None


def _is_pattern(pattern: str) -> bool:
    try:
        names = {pattern.format(number) for number in (0, 1)}
    except (IndexError, KeyError, ValueError):
        return False
    return len(names) == 2 and all("/" not in n and n.endswith(".tar") for n in names)
