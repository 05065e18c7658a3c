"""`shards verify` and `shards stats`: faults and contents of shards."""

import gzip
import json
import re
from pathlib import Path

import pytest
import zstandard

from shards.samples.synthetic_images import encode_jpeg, make_image
from streamssl.cli import main
from tests.noise import noise
from tests.tars import make_tar
from tests.tinyrun import make_shards, other_user, reachable_folder

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


GOOD = make_tar([(f"{i}.png", noise(30, 30, ".png", i)) for i in range(20)])
ZSTD = zstandard.ZstdCompressor()
BAD = {
    "no bytes": ("tar", b"", r"layout: \S+tar holds 0 bytes"),
    "no tar": ("tar", b"<html>" * 500, "broken_tar +1 .* it begins with b'<html>"),
    "truncated": ("tar", GOOD[:5000], "truncated_tar +1 .* member '1.png': .* of 2798 bytes"),
    "no end": (
        "tar",
        GOOD[: -(-len(GOOD.rstrip(b"\0")) // 512) * 512],
        r"no end: \S+tar: the two blocks of",
    ),
    "cut gzip": ("tar.gz", gzip.compress(GOOD)[:3000], "truncated_tar +1 .*gzip stream ends early"),
    "no gzip": ("tar.gz", b"junk" * 900, "broken_tar +1 .* it begins with b'junk"),
    "gzip of no tar": ("tar.gz", gzip.compress(b"<html>" * 50_000), "broken_tar +1 .*b'<html>"),
    "cut zstd": ("tar.zst", ZSTD.compress(GOOD)[:4000], "truncated_tar +1 .*zstd stream ends"),
    "nested": ("tar", make_tar([("0.tar", GOOD)]), "no_image +1 .*members: tar"),
    "denied": ("tar", GOOD, r"unreadable: \S+ cannot be read: permission denied; ask its owner"),
}


@pytest.mark.parametrize(
    "place", ["a", *(pytest.param(n, marks=pytest.mark.slow) for n in ("m", "z"))]
)
@pytest.mark.parametrize("kind", BAD)
def test_verify_goes_on_after_a_bad_shard(kind: str, place: str, capsys: Capture) -> None:
    """A user would mend one shard, wait an hour, and see the next; good ones were not checked."""
    extension, content, message = BAD[kind]
    with reachable_folder() as folder:
        bad = folder / f"{place}.{extension}"
        bad.write_bytes(content)
        for name in ("b", "c", "n", "o"):
            (folder / f"{name}.tar").write_bytes(GOOD)
        if kind == "denied":
            bad.chmod(0)
        with other_user():
            assert main(["shards", "verify", str(folder), "--depth", "headers"]) == 1
    text = capsys.readouterr().out
    assert re.search(message, text), text
    assert int(re.search(r"^(\d+) samples", text, re.MULTILINE)[1]) >= 80  # of the good ones


@pytest.mark.parametrize(
    ("images", "code", "line"),
    [
        (
            [b"junk"] * 3,
            1,
            r"no sample can be used: all 3 .*, 3 as not_an_image, first \S+a\.tar, ",
        ),
        ([b"junk", noise(30, 30)], 0, ""),  # a report, not a judgement
        ([], 1, "no sample can be used: the shards hold none; "),
    ],
)
def test_stats_tell_plainly_if_no_sample_can_be_used(
    images: list[bytes], code: int, line: str, capsys: Capture, tmp_path: Path
) -> None:
    """A script would go on to train, and the run would end at its first batch."""
    for name in ("a", "b"):
        members = [(f"{i}.png", data) for i, data in enumerate(images)]
        (tmp_path / f"{name}.tar").write_bytes(make_tar(members if name == "a" else []))
    assert main(["shards", "stats", str(tmp_path)]) == code
    text = capsys.readouterr().out
    assert ("no sample can be used" in text) == (code == 1) and re.search(line, text)
    with pytest.raises(SystemExit):
        main(["shards", "stats", "--help"])
    assert "no sample of the shards can be used" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


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
    assert found["labels"] == {"images": 160, "different": 10}
    assert found["shorter_side"]["p50"] == 32 and found["rejected"] == 0
    assert found["samples_per_shard"] == [40, 60] and found["decoded_per_second_per_core"] > 0
    text = shown(capsys, "shards", "stats", shards_folder, "--depth", "pixels")
    assert found.pop("layout") == [] and "layout:" not in text
    for name in found:
        assert name.replace("_", " ") in text


def test_names_with_dots_are_not_good_until_their_rule_is_chosen(
    capsys: Capture, tmp_path: Path
) -> None:
    """Other tools see a quarter of the images, and nobody would know."""
    names = (f"cam/1633024{at:03d}.250000.jpg" for at in range(20))
    members = [(name, encode_jpeg(make_image(0, at, 0, 32))) for at, name in enumerate(names)]
    shard = tmp_path / "0.tar"
    shard.write_bytes(make_tar(members))
    assert main(["shards", "verify", str(shard)]) == 1
    assert "not good: tools that cut keys at the first dot" in capsys.readouterr().out
    text = shown(capsys, "shards", "verify", shard, "--keys", "last_dot")
    assert "20 samples in 1 shards" in text and "not good" not in text
    shown(capsys, "shards", "pack", shard, tmp_path / "out")
    assert "layout" not in shown(capsys, "shards", "verify", tmp_path / "out")


def test_statistics_name_what_is_wrong(capsys: Capture, tmp_path: Path) -> None:
    """A count of rejects without a place, or an empty shard among others, cannot be mended."""
    jpeg = encode_jpeg(make_image(0, 0, 0, 32))
    (tmp_path / "0.tar").write_bytes(make_tar([("a.jpg", jpeg), ("a.cls", b"-1"), ("b.jpg", jpeg)]))
    (tmp_path / "1.tar").write_bytes(make_tar([]))
    (tmp_path / "2.tar").write_bytes(make_tar([("c.jpg", jpeg[:200]), ("d.jpg", b"")]))
    (tmp_path / "3.tar").write_bytes(make_tar([("e.jpg", jpeg), ("e.cls", b"4")]))
    text = shown(capsys, "shards", "stats", tmp_path)
    assert re.search(r"^without samples: \S+1\.tar: a run finds nothing in it", text, re.MULTILINE)
    assert re.search(r"first: \S+2\.tar, byte 1024, key 'd'", text)
    assert re.search(r"layout: \d of \d images have no label \(cls, label, class\)", text)
    assert "key 'd'" in shown(capsys, "shards", "stats", tmp_path, "--sample", 4)


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
