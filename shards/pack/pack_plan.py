"""What a pack is made of: the tasks, one a shard, that are settled before anything is read.

So every shard can be made alone, by anybody, again: what a shard holds depends on the listing and
the settings. An image that turns out to be none leaves its shard smaller and moves nobody else.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.pack.fetch import Fetcher
from shards.records import Sample
from shards.samples.subset import Subset

# The layout of what is written; raised when the same input would give other bytes.
_LAYOUT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """How samples are dealt to shards. A shard is closed by whichever limit it would pass first.

    Lengths are those that are known before anything is read: of files and of objects in a store.
    An image from the web is taken for 256 KiB.
    """

    samples_per_shard: int = 10_000
    """A shard is closed when it holds so many; about so many where shards are packed again."""
    max_bytes: int = 1 << 28
    """Or when it would pass so many bytes."""
    seed: int | None = 0
    """Decides the order, so that shards are not sorted by class; None keeps the source's."""
    pattern: str = "shard-{:06d}.tar"
    """Name of a shard, with one number."""

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
class Skipped:
    """An image that is not in its shard, and why. `lost`: another time it may be there."""

    name: str
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Some samples of a shard in their order, those left out beside them.

    `units` of the source were worked through for it. `num_unselected` samples are not in the
    subset list. `leaps` names input shards in which a member reaches over a whole chunk.
    """

    units: int
    samples: Sequence[Sample] = ()
    skipped: Sequence[Skipped] = ()
    num_unselected: int = 0
    leaps: tuple[int, ...] = ()


class ShardTask(Protocol):
    """One shard that is to be written. Travels by pickle to the worker that does it."""

    @property
    def number(self) -> int: ...

    @property
    def variant(self) -> str:
        """What decides the shard's bytes besides the inputs of the whole pack."""

    def read(self, fetcher: Fetcher, subset: Subset | None) -> Iterator[Step]:
        """All samples of the shard, in order."""


class Plan(Protocol):
    """The shards of a pack."""

    num_shards: int

    def units(self, number: int) -> int:
        """How much work shard number `number` is, in units of the source."""

    def cost(self) -> int:
        """How much work all shards are, in bytes that a single core gets through as fast."""

    def variant(self, number: int, irregular: frozenset[int]) -> str:
        """The `variant` of that task."""

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:
        """Shard number `number`, when the input shards in `irregular` must be walked through."""


class Source(Protocol):
    """What can be packed."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Names the content: two sources that agree in it give the same shards."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """By reason, what was found and cannot be packed."""

    @property
    def unit(self) -> Literal["images", "bytes"]: ...

    @property
    def subset(self) -> Subset | None:
        """Which samples are wanted, where these are shards."""

    def plan(self, config: PackConfig) -> Plan: ...


def describe(source: Source, config: PackConfig, **others: Any) -> dict[str, Any]:
    """What decides the bytes that are written: two packs that agree in it are the same."""
    fields = {"layout": _LAYOUT, **asdict(config), "source": source.digest, **others}
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain


def shuffled(num: int, seed: int | None, *purpose: int) -> NDArray[np.int64]:
    """range(num) in the order that the seed decides; None keeps it."""
    order = np.arange(num)
    if seed is None:
        return order
    text = "/".join(map(str, ("pack", seed, num, *purpose)))
    key = blake2b(text.encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    return generator.permutation(num)


def deal(sizes: NDArray[np.int64], most: int, max_bytes: int) -> NDArray[np.int64]:
    """Where the shards begin and end, so that each has at most so many entries and bytes.

    Shard n takes the entries [bounds[n], bounds[n + 1]), at least one.
    """
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        fit = int(np.searchsorted(ends, before + max_bytes, side="right"))
        bounds.append(min(max(fit, start + 1), start + most, len(sizes)))
    return np.array(bounds, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStats:
    """What became of one shard: its side-car, and the proof that it is complete.

    `made_from` names the inputs. `left_out` lists, by reason, the names of what is not in it.
    """

    made_from: str
    number: int
    num_samples: int
    num_bytes: int
    digest: str
    num_renamed: int = 0
    num_unselected: int = 0
    leaps: tuple[int, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "ShardStats | None":
        """What `to_json` wrote; None for anything else."""
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
