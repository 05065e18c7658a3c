"""Drills of the data: damaged copies, and a slow and faulty server."""

from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.inspect.damage import DamageConfig, drill_damage
from shards.inspect.slow_store import SlowConfig, drill_slow


def test_damage_hits_copies_only_and_is_reproducible(
    synthetic_shards: Path, tmp_path: Path
) -> None:
    """A drill would damage the shards themselves, or report other losses each time."""
    paths = sorted(synthetic_shards.glob("*.tar"))
    before = [path.read_bytes() for path in paths]
    report = drill_damage(paths, tmp_path, DamageConfig(num_places=6, num_shards=2))
    assert [path.read_bytes() for path in paths] == before
    assert (report.num_shards, report.num_images, len(report.damages)) == (2, 64, 6)
    assert {damage.kind for damage in report.damages} == {"zeros", "noise", "flipped bits"}
    # Images have 2 kB: 4 KiB of damage hit three at most.
    assert 0 < report.num_lost <= 3 * 6
    assert sum(report.rejects.values()) > 0 and report.num_unreadable == 0
    again = drill_damage(paths, tmp_path, DamageConfig(num_places=6, num_shards=2))
    assert again == report


def test_a_faulty_server_costs_time_and_no_sample(synthetic_shards: Path) -> None:
    """A broken transfer would lose or change samples, or the report would hide the retries."""
    config = SlowConfig(delay_seconds=0.01, bytes_per_second=5e6, broken=0.3, num_chunks=12)
    report = drill_slow(sorted(synthetic_shards.glob("*.tar")), config)
    assert report.num_differing == 0 and report.num_samples > 0
    assert report.faults["slow"] > 0
    broken = report.faults.get("refused with 503", 0) + report.faults.get("broken off", 0)
    assert broken > 0 and sum(report.retries.values()) >= broken
    assert report.slow_seconds > report.normal_seconds


@pytest.mark.parametrize(
    "wrong", [{"broken": 0.9}, {"num_chunks": 0}, {"bytes_per_second": 0}], ids=str
)
def test_settings_that_no_reader_survives_are_refused(wrong: dict[str, float]) -> None:
    """The drill would end with a failed read, which proves nothing."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SlowConfig(**wrong)  # type: ignore[arg-type]
