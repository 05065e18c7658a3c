"""`streamssl shards view`: sheets of samples, and of the exact crops of a run's batch."""

from pathlib import Path

import pytest
from PIL import Image

from streamssl.cli import main
from tests.tinyrun import make_shards

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", num=160)


def view(*arguments: object) -> int:
    return main(["shards", "view", *map(str, arguments)])


def test_a_sheet_of_samples_is_written(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    """The command of the documents, in both forms."""
    for suffix in ("html", "png"):
        assert view(shards, "--out", tmp_path / f"sheet.{suffix}", "--num", 12) == 0
        assert capsys.readouterr().out == f"{shards}: 12 tiles in {tmp_path}/sheet.{suffix}\n"
    text = (tmp_path / "sheet.html").read_text()
    assert text.count("<figure") == 12 and "3 shards" in text and "label: " in text
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 600


def test_admission_of_a_sheet_is_that_of_a_run(shards: Path, tmp_path: Path) -> None:
    """One tries out what a setting would throw away before a run does."""
    out = tmp_path / "sheet.html"
    assert view(shards, "--out", out, "--num", 9, "--admission.min-side", 33) == 0
    assert out.read_text().count("too_small") == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.gif"], "ends in '.gif'; a sheet is written as .html or .png"),
        (["--out", "nowhere/a.png"], "lies in no folder; a sheet is written into one that exists"),
        (["--out", "a.png", "--num", 0], "num=0; a sheet shows from 1 to 1024 samples"),
        (["--out", "a.png", "--run", "runs/a"], "--run is given without --batch"),
        (["--out", "a.png", "--batch", 3], "--batch is given without --run"),
        ([], "--out is missing"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(
    shards: Path, capsys: Capture, options: list[object], message: str
) -> None:
    """Exit code 2, before anything is read."""
    assert view(shards, *options) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
