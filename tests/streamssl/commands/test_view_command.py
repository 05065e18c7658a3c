"""`streamssl shards view`: sheets of samples, and of the exact crops of a batch."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.stores.range_reader import RangeReader
from streamssl.cli import main
from streamssl.pretrain.replay_batch import open_batch
from tests.shards.inspect.test_sample_view import Page
from tests.tinyrun import make_shards, read_log, tiny_swav, train_here

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", num=160)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_here(tiny_swav(num_steps=3), make_shards(folder / "shards", num=160), folder / "run")
    return folder / "run"


def view(*arguments: object) -> int:
    return main(["shards", "view", *map(str, arguments)])


def test_sheet_of_samples_is_written(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    """The documented command would fail for HTML or PNG."""
    for suffix in ("html", "png"):
        assert view(shards, "--out", tmp_path / f"sheet.{suffix}", "--num", 12) == 0
        output = capsys.readouterr().out
        assert output.startswith(f"{shards}: 3 shards, ") and output.count("\n") == 1
        assert "12 samples drawn with seed 0, 0 rejected" in output and f"sheet.{suffix}" in output
    text = (tmp_path / "sheet.html").read_text()
    assert text.count("<figure") == 12 and "3 shards" in text and "label: " in text
    with Image.open(tmp_path / "sheet.png") as pil_image:
        assert pil_image.width > 600


def test_names_with_brackets_are_printed_as_they_are(
    shards: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The terminal library would take '[v2]' for a style and leave it out."""
    data = shutil.copytree(shards, tmp_path / "data [v2]")
    assert view(data, "--out", tmp_path / "sheet [a].html", "--num", 2) == 0
    assert capsys.readouterr().out.startswith(f"{data}: 3 shards, ")


def test_admission_options_apply_to_a_sheet(shards: Path, tmp_path: Path) -> None:
    """The user could not try out which images a setting rejects."""
    out = tmp_path / "sheet.html"
    assert view(shards, "--out", out, "--num", 9, "--admission.min-side", 33) == 0
    assert out.read_text().count("too_small") == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.gif"], "ends in '.gif'; a sheet is written as .html or .png"),
        (["--out", "nowhere/a.png"], "does not exist; a sheet needs an existing one"),
        (["--out", "a.png", "--num", 0], "num=0; a sheet shows from 1 to 1024 samples"),
        (["--out", "a.png", "--run", "runs/a"], "--run is given without --batch"),
        (["--out", "a.png", "--batch", 3], "--batch is given without --run"),
        (
            ["--out", "a.png", "--run", "runs/none", "--batch", 3],
            "runs/none/data.toml cannot be read",
        ),
        ([], "--out is missing"),
    ],
)
def test_wrong_options_are_one_sentence(
    shards: Path, capsys: Capture, options: list[object], message: str
) -> None:
    """A wrong option would be a traceback, or be found after reading."""
    assert view(shards, *options) == 2
    output = capsys.readouterr().err
    assert message in output and output.count("\n") == 1


def test_missing_data_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    """A command without shards and run would write an empty sheet."""
    assert view("--out", tmp_path / "a.png") == 2
    assert "no data was named; a sheet shows shards or a batch" in capsys.readouterr().err


def test_batch_is_shown_with_its_exact_crops(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """The sheet would show other pixels than were trained on."""
    out = tmp_path / "batch.html"
    assert view("--run", run, "--batch", 3, "--out", out, "--num", 5) == 0
    digest = {fields["step"]: fields["digest"] for fields in read_log(run)}[3]
    output = capsys.readouterr().out
    assert f"crops of 5 of 16 samples; digest {digest}, the same as in metrics.jsonl" in output
    page = Page(out.read_text())
    images = [np.asarray(image.convert("RGB")) for image in page.images()]
    batch = open_batch(run, 3, RangeReader())
    expected = [view for row in range(5) for group in batch.crops for view in group[row]]
    assert len(images) == len(expected) == 5 * 3
    assert all(map(np.array_equal, images, expected))
    words = "".join(page.words)
    for shard, offset in batch.ids[:5].tolist():
        assert f"shard-{shard:06d}.tar, byte {offset}, epoch 0" in words
    assert words.count("label: ") == 5 and "rejected before and between them: none" in words


def test_batch_is_made_again_from_shards_that_are_named(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A run with signed addresses, which are not saved, could not show its batches."""
    out = tmp_path / "batch.png"
    shards = next(run.parent.glob("shards"))
    assert view(shards, "--run", run, "--batch", 1, "--out", out) == 0
    with Image.open(out) as pil_image:
        assert pil_image.height > 300
    assert (
        view(make_shards(tmp_path / "other", num=20), "--run", run, "--batch", 1, "--out", out) == 2
    )
    assert "other data" in capsys.readouterr().err


def test_batch_with_another_digest_is_refused(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """The sheet would show the wrong crops."""
    copy = shutil.copytree(run, tmp_path / "copy")
    log = (copy / "metrics.jsonl").read_text()
    digest = read_log(run)[1]["digest"]
    (copy / "metrics.jsonl").write_text(log.replace(digest, "0" * 32))
    assert view("--run", copy, "--batch", 2, "--out", tmp_path / "a.html") == 1
    assert re.search(rf"was trained on batch 0{{32}}, .*{digest}", capsys.readouterr().err)
    assert not (tmp_path / "a.html").exists()
