"""`shards verify` and `shards stats`: faults and contents of shards."""

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
    """Return the output of a command that succeeds."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_verify_distinguishes_good_and_bad_shards(
    shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """A script would miss a bad shard, or the place of the first reject of a reason."""
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
    place = r"first: \S+/bad/shard-000000\.tar, byte 0, key '\d{8}-\S*', member '\d{8}-\S*\.jpg': "
    assert re.search(rf"not_an_image +1 +{place}", text)
    report = tmp_path / "report.json"
    words = ["shards", "verify", str(bad), "--json", "--depth", "headers", "--report", str(report)]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(report.read_text()) and [*tmp_path.glob(".*")] == []
    assert (found["samples"], found["rejected"]) == (10, 1)
    assert found["reject_reasons"] == {"not_an_image": 1}
    assert found["irregular"] == found["unreadable"] == [] and found["scattered_keys"] == 0
    (shard,) = found["shard_reports"]
    first_reject = shard["rejects"]["not_an_image"]["first"]
    assert shard["uri"] == str(bad) and first_reject["byte"] == 0
    assert first_reject["member"] == f"{first_reject['key']}.jpg"


def test_verify_names_irregular_shards(capsys: Capture, tmp_path: Path) -> None:
    """A fault of a shard as a whole would be shown without place or remedy."""
    jpeg = encode_jpeg(make_image(0, 0, 0, 32))
    inner = make_tar([(f"{i:04d}.jpg", jpeg) for i in range(400)])
    members = [(f"{i}.jpg", jpeg) for i in range(300)]
    shard = tmp_path / "0.tar"
    shard.write_bytes(make_tar([*members, ("1.txt", b""), ("x.jpg", jpeg), ("x.tar", inner)]))
    assert main(["shards", "verify", str(shard), "--depth", "headers"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"irregular: \S+0\.tar, byte \d+: a member contains data.*pack it", text)
    assert re.search(r"scattered: \S+0\.tar, byte \d+: 1 samples have the key of an earlier", text)


def test_stats_are_printed_as_table_or_json(shards_folder: Path, capsys: Capture) -> None:
    """A script would get other fields than a person."""
    found = json.loads(shown(capsys, "shards", "stats", shards_folder, "--json"))
    assert found["shards"] == 3 and found["samples"] == found["images"] == 160
    assert found["formats"] == {"jpeg": 160} and found["members"] == {"cls": 160, "jpg": 160}
    assert found["shorter_side"]["p50"] == 32 and found["rejected"] == 0
    assert found["samples_per_shard"] == [40, 60] and found["decoded_per_second_per_core"] > 0
    text = shown(capsys, "shards", "stats", shards_folder, "--depth", "pixels")
    assert found.pop("layout") == [] and "layout:" not in text
    for name in found:
        assert name.replace("_", " ") in text


def test_stats_of_some_chunks_are_marked_as_an_estimate(
    shards_folder: Path, capsys: Capture
) -> None:
    """An estimate would look like a count."""
    text = shown(capsys, "shards", "stats", shards_folder, "--sample", 1)
    assert re.search(r"scanned 1 of 3 chunks; there are about \d+ samples in all shards", text)
    found = json.loads(shown(capsys, "shards", "stats", shards_folder, "--sample", 1, "--json"))
    assert found["scanned_chunks"] == 1 < found["chunks"] and found["estimated_samples"] > 100


def test_report_that_cannot_be_written_is_one_sentence(
    shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """After an hour of reading, the user would get a traceback."""
    report = tmp_path / "no" / "report.json"
    words = ["shards", "stats", str(shards_folder), "--report", str(report)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert re.search(r"report=\S+report\.json cannot be written \(No such .*name a file in", error)
