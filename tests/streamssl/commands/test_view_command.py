"""`streamssl shards view`: sheets of samples, and of the exact crops of a run's batch."""

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


def test_a_sheet_of_samples_is_written(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    """The command of the documents, in both forms."""
    for suffix in ("html", "png"):
        assert view(shards, "--out", tmp_path / f"sheet.{suffix}", "--num", 12) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{shards}: 3 shards, ") and said.count("\n") == 1
        assert "12 samples drawn with seed 0, 0 rejected" in said and f"sheet.{suffix}" in said
    text = (tmp_path / "sheet.html").read_text()
    assert text.count("<figure") == 12 and "3 shards" in text and "label: " in text
    with Image.open(tmp_path / "sheet.png") as pil_image:
        assert pil_image.width > 600


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
        (
            ["--out", "a.png", "--run", "runs/none", "--batch", 3],
            "runs/none/data.toml cannot be read",
        ),
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


def test_nothing_to_look_at_is_said(tmp_path: Path, capsys: Capture) -> None:
    """Neither shards nor a run were named."""
    assert view("--out", tmp_path / "a.png") == 2
    assert "nothing was named to look at; give shards, or a batch" in capsys.readouterr().err


def test_a_batch_of_a_run_is_shown_crop_for_crop(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """What the sheet shows is what was trained on, to the pixel, and it says so."""
    out = tmp_path / "batch.html"
    assert view("--run", run, "--batch", 3, "--out", out, "--num", 5) == 0
    digest = {fields["step"]: fields["digest"] for fields in read_log(run)}[3]
    said = capsys.readouterr().out
    assert f"crops of 5 of 16 samples; digest {digest}, the same as in metrics.jsonl" in said
    page = Page(out.read_text())
    images = [np.asarray(image.convert("RGB")) for image in page.images()]
    batch = open_batch(run, 3, RangeReader())
    expected = [view for row in range(5) for group in batch.crops for view in group[row]]
    assert len(images) == len(expected) == 5 * 3
    assert all(map(np.array_equal, images, expected))
    words = "".join(page.words)
    for shard, offset in batch.ids[:5].tolist():
        assert f"shard-{shard:06d}.tar, byte {offset}, epoch 0" in words
    assert words.count("label: ") == 5 and "rejected before and between them: nothing" in words


def test_a_batch_is_found_again_where_the_shards_have_moved_to(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Signed addresses are not saved: the shards are named again, and must be the same."""
    out = tmp_path / "batch.png"
    shards = next(run.parent.glob("shards"))
    assert view(shards, "--run", run, "--batch", 1, "--out", out) == 0
    with Image.open(out) as pil_image:
        assert pil_image.height > 300
    assert (
        view(make_shards(tmp_path / "other", num=20), "--run", run, "--batch", 1, "--out", out) == 2
    )
    assert "other data" in capsys.readouterr().err


def test_a_batch_that_is_another_one_now_is_refused(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A sheet of the wrong crops would be believed."""
    copy = shutil.copytree(run, tmp_path / "copy")
    log = (copy / "metrics.jsonl").read_text()
    digest = read_log(run)[1]["digest"]
    (copy / "metrics.jsonl").write_text(log.replace(digest, "0" * 32))
    assert view("--run", copy, "--batch", 2, "--out", tmp_path / "a.html") == 1
    assert f"was trained on batch {'0' * 32}, and {digest}" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()
