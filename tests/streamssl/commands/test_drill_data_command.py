"""`streamssl drill slow-bucket` and `corrupt` on the command line."""

import re
from pathlib import Path

import pytest

from tests.streamssl.commands.test_cli import refused, shown


def test_a_slow_bucket_is_told_of(synthetic_shards: Path, capsys: pytest.CaptureFixture) -> None:
    """What was done, what was noticed, what it cost, what was lost: nothing."""
    options = ("--delay-seconds", 0.005, "--broken", 0.3, "--num-chunks", 12)
    text = shown(capsys, "drill", "slow-bucket", synthetic_shards, *options)
    assert re.search(r"done to the readers: .*\d+ slow", text)
    assert re.search(r"noticed: \d+ .*asked again", text)
    assert "lost or changed: 0 chunks" in text


def test_damage_is_told_of(synthetic_shards: Path, capsys: pytest.CaptureFixture) -> None:
    """Who reads it must know what a run would have said."""
    [shard, *_] = sorted(synthetic_shards.glob("*.tar"))
    text = shown(capsys, "drill", "corrupt", shard, "--num-places", 3)
    assert text.count("done: ") == 3 and "flipped bits in bytes" in text
    assert re.search(r"lost: \d+ of 32 images in 1 copies", text)
    assert re.search(r"counted as: \d+ \w+", text)


def test_shards_of_elsewhere_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A drill damages copies: of a bucket it would copy terabytes."""
    assert "no shards in" in refused(capsys, "drill", "corrupt", tmp_path)
    assert "no shards in s3:" in refused(capsys, "drill", "slow-bucket", "s3://bucket/*.tar")
    assert "no shards were named" in refused(capsys, "drill", "slow-bucket")
