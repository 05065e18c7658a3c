"""`shards verify` and `shards stats`: what is wrong with shards, and what is in them."""

import json
import re
from pathlib import Path

import pytest

from shards.samples.synthetic_images import encode_jpeg, make_image
from streamssl.cli import main
from tests.tars import make_tar
from tests.tinyrun import make_shards

Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, *arguments: object) -> str:
    """What a command prints when all is well."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_verify_tells_good_shards_from_bad_ones(
    shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """Exit code 1 and the place of the first reject of each reason: a script can use it."""
    text = shown(capsys, "shards", "verify", shards_folder)
    assert "160 samples in 3 shards, 0 rejected" in text
    bad = make_shards(tmp_path / "bad", num=10) / "shard-000000.tar"
    content = bytearray(bad.read_bytes())
    first = content.index(b"\xff\xd8\xff")
    content[first : first + 3] = b"???"
    bad.write_bytes(content)
    assert main(["shards", "verify", str(bad)]) == 1
    text = capsys.readouterr().out
    assert "10 samples in 1 shards, 1 rejected" in text
    place = r"first: \S+/bad/shard-000000\.tar, byte 0, key '\d{8}-\S*'"
    assert re.search(rf"not_an_image +1 +{place}", text)
    report = tmp_path / "report.json"
    words = ["shards", "verify", str(bad), "--json", "--depth", "headers", "--report", str(report)]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(report.read_text()) and [*tmp_path.glob("*.part")] == []
    assert (found["samples"], found["rejected"]) == (10, 1)
    assert found["reject_reasons"] == {"not_an_image": 1}
    assert found["irregular"] == found["unreadable"] == [] and found["scattered_keys"] == 0
    (shard,) = found["shard_reports"]
    assert shard["uri"] == str(bad) and shard["rejects"]["not_an_image"]["first"]["byte"] == 0


def test_verify_names_shards_that_a_run_has_to_walk(capsys: Capture, tmp_path: Path) -> None:
    """What is wrong with a shard as a whole is told in one line, with the remedy."""
    jpeg = encode_jpeg(make_image(0, 0, 0, 32))
    inner = make_tar([(f"{i:04d}.jpg", jpeg) for i in range(400)])
    members = [(f"{i}.jpg", jpeg) for i in range(300)]
    shard = tmp_path / "0.tar"
    shard.write_bytes(make_tar([*members, ("1.txt", b""), ("x.jpg", jpeg), ("x.tar", inner)]))
    assert main(["shards", "verify", str(shard), "--depth", "headers"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"irregular: \S+0\.tar, byte \d+: what lies inside a member.*pack it", text)
    assert re.search(r"scattered: \S+0\.tar, byte \d+: 1 samples have the key of an earlier", text)


def test_stats_are_a_table_or_json(shards_folder: Path, capsys: Capture) -> None:
    """The same fields for a person and for a script."""
    found = json.loads(shown(capsys, "shards", "stats", shards_folder, "--json"))
    assert found["shards"] == 3 and found["samples"] == found["images"] == 160
    assert found["formats"] == {"jpeg": 160} and found["members"] == {"cls": 160, "jpg": 160}
    assert found["shorter_side"]["p50"] == 32 and found["rejected"] == 0
    assert found["samples_per_shard"] == [40, 60] and found["decoded_per_second_by_a_core"] > 0
    text = shown(capsys, "shards", "stats", shards_folder, "--depth", "pixels")
    for name in found:
        assert name.replace("_", " ") in text


def test_stats_of_a_sample_say_so(shards_folder: Path, capsys: Capture) -> None:
    """A guess that looks like a count is worse than none."""
    text = shown(capsys, "shards", "stats", shards_folder, "--sample", 1)
    assert re.search(r"looked at 1 of 3 chunks; there are about \d+ samples in all shards", text)
    found = json.loads(shown(capsys, "shards", "stats", shards_folder, "--sample", 1, "--json"))
    assert found["looked_at_chunks"] == 1 < found["chunks"] and found["samples_in_all"] > 100


def test_a_report_that_cannot_be_written_is_one_sentence(
    shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """After an hour of reading, a stack trace instead of a report."""
    report = tmp_path / "no" / "report.json"
    words = ["shards", "stats", str(shards_folder), "--report", str(report)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert re.search(r"report=\S+report\.json cannot be written \(No such .*name a file in", error)
