"""`streamssl drill slow-bucket` and `corrupt`: faults on purpose in copies of the data."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from shards.errors import ConfigError
from shards.inspect.damage import DamageConfig, drill_damage
from shards.inspect.slow_store import SlowConfig, drill_slow
from streamssl.commands.argument_parser import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowBucket:
    """Read local shards through a loopback server that is slow, answers 503 and breaks off."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of shards, or single shards, on this machine. They are only read."""
    bucket: Annotated[SlowConfig, tyro.conf.arg(name="")] = field(default_factory=SlowConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrupt:
    """Damage copies of some local shards, and report what a run would lose."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of shards, or single shards, on this machine. They are only read."""
    damage: Annotated[DamageConfig, tyro.conf.arg(name="")] = field(default_factory=DamageConfig)


def slow_bucket(arguments: list[str], console: Console) -> int:
    """Read local shards through a slow and faulty server."""
    parsed = parse(SlowBucket, "streamssl drill slow-bucket", arguments)
    report = drill_slow(_shards(parsed.data), parsed.bucket)
    console.print(f"faults of the server: {_counts(report.faults)}")
    retries = _counts(report.retries) or "none"
    console.print(f"retries: {retries}; {report.throttles} times slowed down")
    console.print(
        f"cost: {report.slow_seconds:.1f} s instead of {report.normal_seconds:.1f} s for "
        f"{report.num_samples:,} samples of {report.num_chunks} chunks"
    )
    console.print(f"lost or changed: {report.num_differing} chunks")
    return 1 if report.num_differing else 0


def corrupt(arguments: list[str], console: Console) -> int:
    """Damage copies of local shards, and report the losses by reason."""
    parsed = parse(Corrupt, "streamssl drill corrupt", arguments)
    with tempfile.TemporaryDirectory(prefix="streamssl-drill-") as folder:
        report = drill_damage(_shards(parsed.data), Path(folder), parsed.damage)
    for damage in report.damages:
        console.print(
            f"damaged: {damage.kind} in bytes {damage.start}-{damage.stop} of {damage.shard}"
        )
    console.print(
        f"lost: {report.num_lost:,} of {report.num_images:,} images in {report.num_shards} copies"
    )
    console.print(f"counted as: {_counts(report.rejects) or 'no rejects'}")
    if report.num_unreadable:
        console.print(f"unreadable as a whole: {report.num_unreadable} copies")
    return 0


def _shards(places: Sequence[Path]) -> list[Path]:
    """Return the tars of some folders. Raises ConfigError."""
    found: list[Path] = []
    for place in map(Path.expanduser, places):
        inside = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        if not inside or not inside[0].is_file():
            raise ConfigError(
                f"no shards in {place}; a drill needs tars on this machine: give a "
                "folder of them, or copy some here first"
            )
        found += inside
    if not found:
        raise ConfigError(
            "no shards were named; a drill needs tars on this machine: give a folder of them"
        )
    return found


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
