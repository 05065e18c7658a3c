"""`streamssl drill slow-bucket` and `corrupt` on the command line."""

import re
from pathlib import Path

import pytest

from tests.streamssl.commands.test_cli import refused, shown


def test_slow_bucket_reports_faults_retries_and_cost(
    synthetic_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    """The user could not see faults, retries, cost and losses of the drill."""
    options = ("--delay-seconds", 0.005, "--broken", 0.3, "--num-chunks", 12)
    text = shown(capsys, "drill", "slow-bucket", synthetic_shards, *options)
    assert re.search(r"faults of the server: .*\d+ slow", text)
    assert re.search(r"retries: \d+ .*slowed down", text)
    assert "lost or changed: 0 chunks" in text


def test_corrupt_reports_damage_and_losses(
    synthetic_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    """The user could not see what a run would lose, and why."""
    [shard, *_] = sorted(synthetic_shards.glob("*.tar"))
    text = shown(capsys, "drill", "corrupt", shard, "--num-places", 3)
    assert text.count("damaged: ") == 3 and "flipped bits in bytes" in text
    assert re.search(r"lost: \d+ of 32 images in 1 copies", text)
    assert re.search(r"counted as: \d+ \w+", text)


def test_only_local_shards_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A drill would copy terabytes from a bucket."""
    assert "no shards in" in refused(capsys, "drill", "corrupt", tmp_path)
    assert "no shards in s3:" in refused(capsys, "drill", "slow-bucket", "s3://bucket/*.tar")
    assert "no shards were named" in refused(capsys, "drill", "slow-bucket")
