"""Whole runs: from shards to checkpoints; stopped, resumed and refused."""

import fcntl
import io
import json
import math
import os
import re
import shutil
import stat
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from shards.errors import BudgetExceeded, ConfigError, CursorMismatch, UserError
from shards.pack.image_entries import entries_from_synthetic
from shards.samples.admission_config import AdmissionConfig
from shards.samples.synthetic_images import encode_jpeg, make_image
from streamssl.cli import main
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.pretrain.run import pretrain
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig
from streamssl.runs.run_folder import prepare_data
from tests.tinyrun import (
    BATCH,
    make_shards,
    proof,
    quiet,
    read_log,
    stop_at,
    tiny_moco,
    tiny_swav,
    train_here,
    weights,
)


def make_images(folder: Path, num: int = 40) -> Path:
    """Write image files, one folder for each class."""
    for number, entry in enumerate(entries_from_synthetic(num, size=32, num_classes=2).entries):
        path = folder / f"class{entry.label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.read())
    return folder


def test_run_folder_has_settings_data_steps_and_checkpoints(finished_run: Path) -> None:
    """A run must be complete in one folder, without other files."""
    names = {path.name for path in finished_run.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("config.toml", "data.toml", "manifest.parquet"),
        *("metrics.jsonl", "journal.jsonl", "gallery.json", "totals.json", "checkpoints"),
        "end.json",
    }
    steps = [path.name for path in sorted((finished_run / "checkpoints").iterdir())]
    assert steps == ["step-00000002", "step-00000004", "step-00000006"]
    log = read_log(finished_run)
    assert [fields["step"] for fields in log] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(fields["loss"]) for fields in log)
    assert len({fields["digest"] for fields in log}) == 6


@pytest.mark.parametrize(
    "config",
    [
        tiny_moco(num_steps=7),
        pytest.param(tiny_swav(num_steps=7, precision="bf16"), marks=pytest.mark.slow),
    ],
    ids=["moco", "swav-bf16"],
)
def test_run_that_was_stopped_twice_is_the_same_run(
    config: RunConfig, shards_folder: Path, tmp_path: Path
) -> None:
    """Samples, losses and the last checkpoint must be equal, bit by bit."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train_here(config, shards_folder, unbroken)
    first = train_here(config, shards_folder, broken, stop=stop_at(broken, 3))
    assert not first.finished and first.step == 3 and first.checkpoint.name == "step-00000003"
    second = train_here(config, shards_folder, broken, stop=stop_at(broken, 5))
    assert second.step == 5 and second.num_samples == 2 * BATCH
    assert train_here(config, shards_folder, broken).finished
    assert proof(broken) == proof(unbroken)
    assert weights(broken, 7) == weights(unbroken, 7)


def test_steps_after_the_checkpoint_are_repeated(shards_folder: Path, tmp_path: Path) -> None:
    """The log must have every step once, and repeated steps the same samples."""
    config, out = tiny_swav(save_every=2), tmp_path / "run"
    train_here(config, shards_folder, out, stop=stop_at(out, 5))
    shutil.rmtree(out / "checkpoints" / "step-00000005")  # as after a kill in step 6
    train_here(config, shards_folder, out)
    assert [fields["step"] for fields in read_log(out)] == [1, 2, 3, 4, 5, 6]


def test_every_sample_comes_once_in_an_epoch(shards_folder: Path, tmp_path: Path) -> None:
    """Ten batches of 16 must be the 160 images, and the summary must say so."""
    config = tiny_swav(num_steps=10, save_every=10)
    summary = train_here(config, shards_folder, tmp_path / "run")
    cursor = json.loads((summary.checkpoint / "state.json").read_text())["cursor"]
    assert cursor["num_samples"] == 160 and cursor["num_rejects"] == 0
    assert len({fields["digest"] for fields in read_log(tmp_path / "run")}) == 10
    assert summary.finished and summary.step == 10 and summary.num_samples == 160
    assert summary.images_per_second > 0 and 0 <= summary.data_wait_share <= 1
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", summary.metrics_url)


def test_config_toml_gives_the_same_run(
    shards_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """The file must have all settings, also those that follow from the data."""
    config = read_toml(finished_run / "config.toml")
    assert config.stream.chunk_bytes and config.stream.chunks_per_block
    train_here(config, shards_folder, tmp_path / "again")
    assert proof(tmp_path / "again") == proof(finished_run)
    assert read_toml(tmp_path / "again" / "config.toml") == config


def test_settings_that_follow_from_the_data_are_saved(shards_folder: Path, tmp_path: Path) -> None:
    """A later version with other rules must still resume this run."""
    config = tiny_swav(num_steps=1)
    config = replace(config, stream=replace(config.stream, chunk_bytes=None, chunks_per_block=None))
    train_here(config, shards_folder, tmp_path / "run")
    stream = read_toml(tmp_path / "run" / "config.toml").stream
    assert stream.chunk_bytes == 1 << 18 and stream.chunks_per_block == 8
    train_here(replace(config, num_steps=2), shards_folder, tmp_path / "run")


def test_longer_run_continues_from_the_end(
    shards_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """`num_steps` can be raised; without it a finished run has a message."""
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    with pytest.raises(ConfigError, match="has all its 6 steps; raise --num-steps"):
        train_here(tiny_swav(), shards_folder, out)
    train_here(tiny_swav(num_steps=8), shards_folder, out)
    assert [fields["step"] for fields in read_log(out)] == list(range(1, 9))


def refusal(config: RunConfig, data: Path | str, out: Path) -> str:
    """Return the message of a refused run, which must not touch a file of `out`."""
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(UserError) as error:
        train_here(config, Path(data), out)
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    return str(error.value)


def test_other_settings_are_refused_by_name(shards_folder: Path, finished_run: Path) -> None:
    """The message must name the setting that the user changed, not one that follows from it."""
    for config, expected in (
        (tiny_swav(seed=3), "seed=0, now it is 3"),
        (
            tiny_swav(stream=replace(tiny_swav().stream, batch_size=8, chunks_per_block=None)),
            "stream.batch_size=16, now it is 8",
        ),
        (
            tiny_swav(method=SwAVConfig(num_prototypes=5, dim=8, hidden_dim=16)),
            "method.num_prototypes=12, now it is 5",
        ),
    ):
        text = refusal(replace(config, num_steps=9), shards_folder, finished_run)
        assert f"started with {expected}" in text and "give a new --out" in text
    text = refusal(tiny_moco(num_steps=9), shards_folder, finished_run)
    assert "of method 'swav', this run trains 'moco'" in text


def test_other_data_is_refused(finished_run: Path, tmp_path: Path) -> None:
    """A cursor is invalid in other shards."""
    other = make_shards(tmp_path / "other", num=64, seed=5)
    with pytest.raises(CursorMismatch, match=r"belongs to other data .*resume with the --data"):
        train_here(tiny_swav(num_steps=9), other, finished_run)


def test_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    """The message must name a batch size that works, and no folder may be left."""
    data = make_shards(tmp_path / "data", num=10)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "run", tmp_path / "empty", tmp_path / "new" / "folders"):
        text = refusal(tiny_swav(), data, out)
        assert "batch_size=16" in text and "--stream.batch-size of at most 10" in text
    assert {path.name for path in tmp_path.iterdir()} == {"data", "empty"}


def test_data_of_rejects_only_is_refused_with_the_reasons(
    shards_folder: Path, tmp_path: Path
) -> None:
    """The user needs the table of reasons, and no folder."""
    config = tiny_swav(admission=AdmissionConfig(min_side=33))
    with pytest.raises(BudgetExceeded, match=r"too_small +160"):
        train_here(config, shards_folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_out_that_cannot_become_a_run_is_refused_first(shards_folder: Path, tmp_path: Path) -> None:
    """Listing data or packing images first would waste hours."""
    file = tmp_path / "file"
    file.write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    images = make_images(tmp_path / "images")
    for out, expected in (
        (file, "file is a file; --out is the folder of a run"),
        (file / "run", "file is a file; --out is the folder of a run"),
        (foreign, "foreign is not empty and not a run .*give a new --out"),
    ):
        assert re.search(expected, refusal(tiny_swav(), images, out))
        assert re.search(expected, refusal(tiny_swav(), tmp_path / "no such data", out))


def test_run_starts_again_after_a_killed_start(shards_folder: Path, tmp_path: Path) -> None:
    """A kill before the first checkpoint must not block the folder."""
    out = tmp_path / "run"
    (out / "shards.tmp-77").mkdir(parents=True)
    (out / ".config.toml.draft").write_text("half")
    (out / ".lock").touch()
    assert train_here(tiny_swav(num_steps=1), shards_folder, out).finished
    shutil.rmtree(out / "checkpoints")
    (out / "manifest.parquet").unlink()
    assert train_here(tiny_swav(num_steps=1), shards_folder, out).finished
    assert [fields["step"] for fields in read_log(out)] == [1]


def test_two_processes_cannot_train_into_one_folder(
    shards_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """They would delete each other's checkpoints."""
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    with (out / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another process trains into .* at this moment"):
            train_here(tiny_swav(num_steps=7), shards_folder, out)
    assert train_here(tiny_swav(num_steps=7), shards_folder, out).finished


def test_damaged_checkpoint_has_a_message_whose_remedy_works(
    shards_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """After the remedy the run must continue from the checkpoint before."""
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    newest = out / "checkpoints" / "step-00000006"
    (newest / "state.safetensors").write_bytes(b"nothing")
    config = tiny_swav(num_steps=7)
    text = refusal(config, shards_folder, out)
    assert "cannot be read" in text and "remove this checkpoint to go on" in text
    shutil.rmtree(newest)
    assert train_here(config, shards_folder, out).step == 7


def test_rejects_are_counted_and_the_rest_is_trained(tmp_path: Path) -> None:
    """A broken image must cost only itself, and be in the log."""
    data = make_shards(tmp_path / "data", num=96)
    shard = next(data.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    first = content.index(b"\xff\xd8\xff")
    content[first : first + 100] = bytes(100)  # the first image of the shard
    shard.write_bytes(content)
    config = tiny_swav(num_steps=6)
    train_here(config, data, tmp_path / "run")
    cursor = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json").read_text()
    )["cursor"]
    # The sixth batch reaches into the next epoch, where the same image may come again.
    assert cursor["num_rejects"] in (1, 2) and set(cursor["reject_reasons"]) == {"not_an_image"}
    log = read_log(tmp_path / "run")
    assert sum(fields["num_rejects"] for fields in log) == cursor["num_rejects"]
    assert all(fields["num_samples"] == BATCH for fields in log)


def test_images_are_packed_once(tmp_path: Path) -> None:
    """A folder of images is enough to start, and a resume must not pack again."""
    images, out = make_images(tmp_path / "images"), tmp_path / "run"
    (images / "notes.txt").write_text("x")
    texts = []
    for num_steps in (1, 2):
        text = io.StringIO()
        console = Console(file=text, soft_wrap=True)
        placement = Placement(readers=1)
        pretrain(tiny_swav(num_steps=num_steps), str(images), out, placement, console)
        texts.append(text.getvalue())
    assert "holds images and no tar: 40 images packed into" in texts[0]
    assert "1 files skipped" in texts[0]
    assert "40 images already packed into" in texts[1] and "resuming at step 1" in texts[1]


def test_shards_and_addresses_are_used_unchanged(shards_folder: Path, tmp_path: Path) -> None:
    """Shards must not be packed again."""
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "0.TAR.GZ").touch()
    patterns = (str(shards_folder), "s3://bucket/{0..9}.tar", "no/such/folder", str(packed))
    data = DataConfig(patterns=patterns)
    assert prepare_data(data, tmp_path / "out", quiet()) == data
    assert not (tmp_path / "out").exists()


def test_images_beside_shards_are_told(tmp_path: Path) -> None:
    """A folder with one forgotten tar would be trained on that tar alone, without a word."""
    for name in ("in/a.tar", "in/b/0.jpg", "in/b/1.PNG", "in/b/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    text = io.StringIO()
    data = DataConfig(patterns=(str(tmp_path / "in"),))
    assert prepare_data(data, tmp_path / "out", Console(file=text, soft_wrap=True)) == data
    assert text.getvalue().startswith(f"data: 2 files of images beside the shards of {tmp_path}/in")
    assert f"`streamssl shards pack {tmp_path}/in OUT --kind folder` packs them" in text.getvalue()


def test_a_local_folder_is_packed_as_the_command_packs_it(tmp_path: Path) -> None:
    """A run would train on hidden files or on test images, or call a table a folder of images."""
    jpeg = encode_jpeg(make_image(0, 0, 0, 32))
    for name in ("in/train/a/1.jpg", "in/train/b/2.jpg", "in/train/b/._2.jpg", "in/test/a/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg)
    (tmp_path / "in" / "train" / "a" / "1.txt").write_text("caption")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "x.parquet").write_bytes(b"PAR1")
    text = io.StringIO()
    console = Console(file=text, soft_wrap=True)
    data = DataConfig(patterns=(str(tmp_path / "in" / "train"), str(tmp_path / "table")))
    done = prepare_data(data, tmp_path / "out", console)
    assert done.patterns == (str(tmp_path / "out" / "shards-0"), str(tmp_path / "table"))
    assert "2 classes: a, b (sub-folders of" in text.getvalue()
    assert "members beside the images: 1 .txt" in text.getvalue()
    assert "2 images packed into" in text.getvalue() and "1 files skipped" in text.getvalue()
    with pytest.raises(UserError, match=r"in holds the splits test, train; .* pack them apart"):
        prepare_data(DataConfig(patterns=(str(tmp_path / "in"),)), tmp_path / "x", console)


def test_metrics_can_be_scraped_while_it_trains(tmp_path: Path) -> None:
    """Metrics during the run must agree with the log at the same step."""
    data = make_shards(tmp_path / "data", num=96, per_shard=20)
    sorted(data.glob("*.tar"))[1].write_bytes(b"no tar at all" * 200)
    text, seen = io.StringIO(), Counter()
    console = Console(file=text, soft_wrap=True)
    config = tiny_swav(num_steps=8)

    def scrape() -> bool:
        found = re.search(r"metrics at (\S+)", text.getvalue())
        assert found is not None
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            body = answer.read().decode()
        seen.clear()
        for family in text_string_to_metric_families(body):
            for sample in family.samples:
                seen[(sample.name, *sorted(sample.labels.values()))] = sample.value
        log = read_log(tmp_path / "run")
        assert seen["streamssl_train_step",] == log[-1]["step"]
        assert seen["streamssl_loss",] == pytest.approx(log[-1]["loss"])
        assert seen["streamssl_samples_total", "trained"] == BATCH * len(log)
        return False

    pretrain(config, str(data), tmp_path / "run", Placement(readers=1), console, scrape)
    assert seen["streamssl_samples_total", "cropped"] >= 8 * BATCH
    assert seen["streamssl_samples_total", "read"] > seen["streamssl_samples_total", "cropped"]
    assert seen["streamssl_rejects_total", "broken_tar"] >= 1
    assert seen["streamssl_step_seconds_count",] == 8
    assert seen["streamssl_data_wait_seconds_total",] > 0
    assert seen["streamssl_learning_rate",] == read_log(tmp_path / "run")[-1]["lr"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"readers": 0}, "readers=0; it must be at least 1"),
        ({"cluster": "kubernetes"}, "cluster='kubernetes'; it must be none, local, auto or an"),
        ({"metrics_port": 70_000}, "metrics_port=70000; it must be from 0"),
        ({"metrics_port": -1}, "metrics_port=-1; it must be from 0"),
    ],
)
def test_invalid_placement_is_refused(options, expected: str) -> None:
    """A wrong placement must fail before any data is read."""
    with pytest.raises(ConfigError, match=expected):
        Placement(**options)


def test_all_files_of_a_run_and_its_shards_have_the_rights_of_the_umask(tmp_path: Path) -> None:
    """A group reads the runs of its members, and others must not if the umask says so."""
    before = os.umask(0o027)
    try:
        data = make_shards(tmp_path / "data", num=40)
        train_here(tiny_swav(num_steps=2), data, tmp_path / "run")
        report = tmp_path / "report.json"
        assert main(["shards", "verify", str(data), "--report", str(report)]) == 0
    finally:
        os.umask(before)
    assert report.exists()
    for path in tmp_path.rglob("*"):
        wanted = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
