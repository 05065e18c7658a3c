"""Drill: damage copies of shards on purpose, and report the samples that a run would lose."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.errors import ConfigError
from shards.inspect.shard_scanner import ScanResult, ShardScanner
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class DamageConfig:
    """Number of damaged places, and of copied shards."""

    num_places: int = 8
    num_shards: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_places < 1 or self.num_shards < 1:
            raise ConfigError(
                f"num_places={self.num_places}, num_shards={self.num_shards}; both must be at "
                "least 1"
            )


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """Kind of damage in bytes [start, stop) of a copy."""

    kind: str
    shard: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DamageReport:
    """Images before and after the damage, and the additional rejects by reason."""

    damages: tuple[DamagedRange, ...]
    num_shards: int
    num_images: int
    num_left: int
    rejects: Mapping[str, int]
    num_unreadable: int

    @property
    def num_lost(self) -> int:
        return self.num_images - self.num_left


def drill_damage(paths: Sequence[Path], folder: Path, config: DamageConfig) -> DamageReport:
    """Damage copies in `folder`, and scan them as `shards verify` does."""
    rng = random.Random(config.seed)
    chosen = rng.sample(list(paths), min(config.num_shards, len(paths)))
    # Two folders may have shards of the same name.
    copies = [folder / f"{number:02d}-{path.name}" for number, path in enumerate(sorted(chosen))]
    for path, copy in zip(sorted(chosen), copies, strict=True):
        shutil.copyfile(path, copy)
    before = _scan(copies)
    damages = tuple(_damage(rng.choice(copies), number, rng) for number in range(config.num_places))
    after = _scan(copies)
    more = Counter(after.stats.rejects)
    more.subtract(before.stats.rejects)
    return DamageReport(
        damages=damages,
        num_shards=len(copies),
        num_images=before.stats.num_images,
        num_left=after.stats.num_images,
        rejects={reason: number for reason, number in more.most_common() if number > 0},
        num_unreadable=sum(bool(report.unreadable) for report in after.shards),
    )


def _scan(copies: Sequence[Path]) -> ScanResult:
    reader = RangeReader()
    manifest = open_manifest([str(copy) for copy in copies], reader)
    return ShardScanner(manifest, reader, AdmissionConfig(), isolated=True).scan_all()


def _damage(path: Path, number: int, rng: random.Random) -> DamagedRange:
    """Damage one place; the kinds take turns."""
    kind, change = _KINDS[number % len(_KINDS)]
    size = path.stat().st_size
    start = rng.randrange(size)
    stop = min(start + 4096, size)
    with path.open("r+b") as file:
        file.seek(start)
        data = file.read(stop - start)
        file.seek(start)
        file.write(change(data, rng))
    return DamagedRange(kind, path.name, start, stop)


def _zeros(data: bytes, _: random.Random) -> bytes:
    """Return a block that the disk has lost."""
    return bytes(len(data))


def _noise(data: bytes, rng: random.Random) -> bytes:
    """Return a block of another file."""
    return rng.randbytes(len(data))


def _flips(data: bytes, rng: random.Random) -> bytes:
    """Flip eight bits."""
    changed = bytearray(data)
    for _ in range(8):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


_KINDS: Final[tuple[tuple[str, Callable[[bytes, random.Random], bytes]], ...]] = (
    ("zeros", _zeros),
    ("noise", _noise),
    ("flipped bits", _flips),
)
