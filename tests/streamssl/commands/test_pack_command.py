"""Command `streamssl shards pack`: its output, exit status and error messages."""

import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from shards.samples.synthetic_images import encode_jpeg, make_image
from streamssl.cli import main
from streamssl.runs.pack_progress import show_packing
from tests.tars import make_tar, samples_by_tarfile

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder of twenty images in two sub-folders, beside a file."""
    (tmp_path / "taken").write_text("x")
    for number in range(20):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(make_image(0, number, number % 10, 32)))
    return tmp_path / "images"


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Return exit code, output and errors of `streamssl shards pack …`."""
    capsys.readouterr()
    code = main(["shards", "pack", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_kind_of_source_is_detected(images: Path, capsys: Capture, tmp_path: Path) -> None:
    """A folder, list or pattern would need an option."""
    first, second = tmp_path / "first", tmp_path / "second"
    code, text, _ = run(capsys, images, first, "--samples-per-shard", 8)
    assert code == 0 and f"20 samples in 3 shards (81,920 bytes) in {first}: written" in text
    names = sorted(str(path) for path in images.rglob("*.jpg"))
    (tmp_path / "keys.txt").write_text("\n".join(f"{n:08d}-{2 * n:02d}" for n in range(5)))
    options = ("--subset", tmp_path / "keys.txt", "--workers", 1)
    code, text, _ = run(capsys, f"{first}/*.tar", second, *options)
    assert code == 0 and "5 samples in 1 shards" in text
    assert "15 samples are not in the subset list" in text
    (tmp_path / "list").write_text("\n".join([*names, "none.jpg"]))
    code, text, _ = run(capsys, tmp_path / "list", tmp_path / "third", "--seed", "None")
    assert code == 0 and "20 samples in 1 shards" in text and "skipped 1: unreadable" in text


def test_skipped_and_renamed_samples_are_printed_by_reason(
    images: Path, capsys: Capture, tmp_path: Path
) -> None:
    """A total alone does not show what to correct."""
    (images / "a" / "x.jpg").write_bytes(b"")
    code, text, _ = run(capsys, images, tmp_path / "a", "--admit", "--admission.min-side", 40)
    assert code == 2
    code, text, _ = run(capsys, images, tmp_path / "a", "--labels", "none")
    assert code == 0 and "skipped 1: empty" in text
    (tmp_path / "b.tar").write_bytes((tmp_path / "a" / "shard-000000.tar").read_bytes())
    (tmp_path / "c.tar").write_bytes((tmp_path / "a" / "shard-000000.tar").read_bytes())
    code, text, _ = run(capsys, f"{tmp_path}/?.tar", tmp_path / "d", "--kind", "shards")
    assert code == 0 and "40 samples in 1 shards" in text
    assert "20 samples have a new key: their shard had theirs already" in text


def test_what_was_found_is_printed_before_the_work(
    images: Path, capsys: Capture, tmp_path: Path
) -> None:
    """The user would learn from the evaluation which labels the shards have."""
    (images / "._x.jpg").write_bytes(b"half a file")
    (images / "a" / "[b].xml").write_text("<x/>")
    code, text, _ = run(capsys, images, tmp_path / "out", "--labels", "required")
    assert code == 0 and f"2 classes: a, b (sub-folders of {images})\nnot taken: 1 .xml\n" in text
    assert "skipped 1: hidden" in text


def test_members_that_lie_apart_are_joined_and_verify_is_content(
    images: Path, capsys: Capture, tmp_path: Path
) -> None:
    """Packed again as they lie, labels would get new keys, and nothing would tell."""
    files = sorted(images.rglob("*.jpg"))
    members = [(path.name, path.read_bytes()) for path in files]
    members += [(f"{path.stem}.cls", b"%d" % (int(path.stem) % 7)) for path in files]
    (tmp_path / "apart.tar").write_bytes(make_tar(members))
    code, text, _ = run(capsys, tmp_path / "apart.tar", tmp_path / "out")
    assert code == 0 and "20 samples joined from 40 groups of members\n" in text
    assert main(["shards", "verify", str(tmp_path / "out")]) == 0
    assert "20 samples in 1 shards, 0 rejected" in capsys.readouterr().out
    (packed,) = (tmp_path / "out").glob("*.tar")
    for key, fields in samples_by_tarfile(packed.read_bytes()):
        assert int(fields["cls"]) == int(key) % 7
    code, text, _ = run(capsys, tmp_path / "apart.tar", tmp_path / "as-is", "--join", "no")
    assert code == 0 and "40 samples in 1 shards" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("nowhere out", "nowhere is not a folder; images are packed from one; check the path"),
        ("nowhere.tar out", r"nowhere\.tar does not exist; give a folder"),
        ("nowhere.parquet out", r"nowhere\.parquet cannot be read \(No such file"),
        ("images taken", r"taken exists and is not a complete pack .*name another"),
        ("images images/b/x", r"images/b/x is inside images; the next start .*place outside"),
        ("images images", "images is inside images; the next start would pack"),
        ("s3://bucket/a s3://bucket/a/b", "s3://bucket/a/b is inside s3://bucket/a; the next"),
        ("images out/x --workers 0", "workers=0; it must be at least 1: leave it out"),
        ("images out --download.timeout-seconds 0", "timeout_seconds=0.0; it must be more than 0"),
        ("images s4://out", "the store 's4', which is unknown; allowed are a local"),
        ("images out --subset x.npy", "subset='x.npy' with a folder of images; a subset list"),
        ("images out --join maybe", r"--join='maybe'; allowed are auto, yes, no"),
        ("images out --kind zip", r"--kind='zip'; allowed are auto, folder"),
        ("images http://127.0.0.1/x", "is on the web; shards are written to a folder or to a st"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(
    arguments: str,
    expected: str,
    images: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A traceback would hide the remedy; and a file would be left."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, error = run(capsys, *arguments.split())
    assert code == 2 and re.search(expected, error) and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_pack_is_refused_by_the_commands_that_read_shards(
    images: Path, capsys: Capture, tmp_path: Path
) -> None:
    """A run would train on half of its data."""
    out = tmp_path / "out"
    assert run(capsys, images, out, "--samples-per-shard", 8)[0] == 0
    (out / "pack.unfinished.json").write_text("{}")
    for command in ("pretrain swav-small --data", "shards stats"):
        for pattern in (out, f"{out}/*.tar"):
            words = [*command.split(), str(pattern)]
            words += ["--out", str(tmp_path / "run")] if command.startswith("pretrain") else []
            assert main(words) == 2
            error = capsys.readouterr().err
            assert "out holds an unfinished pack; its shards can be read when all are wri" in error
    assert not (tmp_path / "run").exists()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escape codes would fill a log, lines a screen."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for terminal, unit in ((False, "images"), (True, "images"), (True, "bytes")):
        console = Console(force_terminal=terminal, highlight=False, width=100)
        with show_packing(console) as progress:
            progress.begin(1000, unit)
            for _ in range(4):
                now[0] += 6
                progress.advance(150)
            progress.message("something")
        text = capsys.readouterr().out
        assert "something" in text and ("\x1b" in text) == terminal
        if not terminal:
            assert "300 of 1,000 images, 25 a second\n600 of 1,000 images" in text
