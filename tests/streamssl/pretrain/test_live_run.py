"""The live page of real runs: while they train, and again from their folders."""

import io
import json
import os
import re
import time
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from shards.errors import ConfigError
from streamssl.commands.live import ShowLive, is_training, show_live
from streamssl.pretrain.live_run import address_of, read_places
from streamssl.pretrain.replay_page import reopened
from streamssl.pretrain.run import pretrain
from streamssl.runs.placement import Placement
from tests.tinyrun import make_shards, read_log, tiny_swav, train_here


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def state_at(address):
    return json.loads(get(f"{address}state"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images, and a shard that is no tar: one reject."""
    folder = make_shards(tmp_path_factory.mktemp("live") / "data", num=96, per_shard=20)
    sorted(folder.glob("*.tar"))[1].write_bytes(b"no tar at all" * 200)
    return folder


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory):
    """The folder of a run of twelve steps."""
    out = tmp_path_factory.mktemp("live") / "run"
    train_here(tiny_swav(num_steps=12), data, out)
    return out


def test_a_run_shows_a_crop_and_a_reject_while_it_trains(data, tmp_path):
    """The page would be empty until somebody found out why."""
    text, seen = io.StringIO(), {}

    def look():
        found = re.search(r"live page at (\S+)", text.getvalue())
        assert found is not None and found[1] == address_of(tmp_path / "run")
        assert b"Am I stalled?" in get(found[1])
        seen.update(state_at(found[1]))
        return False

    console = Console(file=text, soft_wrap=True)
    pretrain(tiny_swav(num_steps=6), str(data), tmp_path / "run", Placement(), console, look)
    assert seen["run"]["name"] == "run" and seen["run"]["num_steps"] == 6
    gallery = seen["sections"]["gallery"]
    assert gallery["crops"][-1]["step"] == 1
    assert [tile["reason"] for tile in gallery["rejects"]] == ["broken_tar"]
    assert address_of(tmp_path / "run") == ""


def test_an_ended_run_is_opened_from_its_folder(ended):
    """What was learned over night is looked at in the morning."""
    lines = read_log(ended)
    with reopened(ended) as address:
        state = state_at(address)
        assert b"Am I stalled?" in get(address)
    history = state["history"]
    assert history["streamssl_loss"] == [line["loss"] for line in lines]
    assert history["streamssl_train_step"] == list(range(1, 13))
    assert state["run"]["ended"] == pytest.approx(os.path.getmtime(ended / "metrics.jsonl"), abs=1)
    rejects = state["values"]['streamssl_rejects_total{reason="broken_tar"}']
    assert rejects == sum(line["num_rejects"] for line in lines) > 0
    assert state["sections"]["answers"]["learning"]["short"] == "It is done."
    assert state["sections"]["answers"]["progress"]["text"].startswith("Step 12 of 12, after")


def test_crops_of_an_ended_run_are_made_again(ended):
    """Only ids are kept; the images come from the shards."""
    assert read_places(ended, num_shards=9)
    with reopened(ended) as address:
        for _ in range(300):
            tiles = state_at(address)["sections"]["gallery"]["crops"]
            if tiles[0]["image"]:
                break
            time.sleep(0.1)
        assert get(address.rstrip("/") + tiles[0]["image"]).startswith(b"\xff\xd8")


def test_an_ended_run_opens_without_its_data(ended, tmp_path):
    """A bucket that was emptied, a folder that was copied: the numbers are still there."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (copy / name).write_bytes((ended / name).read_bytes())
    (copy / "gallery.json").write_text("{")
    with reopened(copy) as address:
        state = state_at(address)
    assert len(state["history"]["time"]) == 12 and "gallery" not in state["sections"]


def test_a_long_log_becomes_as_many_points_as_a_live_run_keeps(ended, tmp_path):
    """A log of a million lines would take the browser down."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.toml").write_bytes((ended / "config.toml").read_bytes())
    line = read_log(ended)[0]
    lines = [json.dumps({**line, "step": step}) for step in range(1, 5001)]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with reopened(copy) as address:
        history = state_at(address)["history"]
    steps = history["streamssl_train_step"]
    assert len(steps) <= 601 and steps[0] == 1 and steps[-1] == 5000


def test_the_command_says_where_the_page_is(ended):
    """An address is all that it gives."""
    text = io.StringIO()
    show_live(ShowLive(run=ended), Console(file=text, soft_wrap=True), lambda: None)
    assert re.match(
        rf"{ended} is shown at http://127\.0\.0\.1:\d+/; Ctrl-C ends it", text.getvalue()
    )


def test_a_run_that_trains_is_not_opened_a_second_time(data, tmp_path):
    """Its own page is newer, and it is the one that others look at."""
    out, told = tmp_path / "run", io.StringIO()

    def look():
        show_live(ShowLive(run=out), Console(file=told, soft_wrap=True), lambda: None)
        return bool(read_log(out))

    train_here(tiny_swav(num_steps=4), data, out, stop=look)
    assert re.match(rf"{out} trains at this moment; its page is at http://\S+/\n", told.getvalue())
    assert not is_training(out)


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "is no run"), (("config.toml",), "has no finished step")],
)
def test_folders_without_a_run_are_refused_in_one_sentence(ended, tmp_path, files, message):
    """A stack of Python for a slip of the finger."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes((ended / name).read_bytes())
    with pytest.raises(ConfigError, match=message):
        show_live(ShowLive(run=folder), Console(file=io.StringIO()), lambda: None)


def test_damaged_notes_cost_the_images_alone(tmp_path: Path):
    """A run must not fail for what it shows."""
    for text in (
        "",
        "[]",
        '{"places": [{"shard": "x"}]}',
        '{"places": [{"shard": 99, "offset": 0}]}',
    ):
        (tmp_path / "gallery.json").write_text(text)
        assert read_places(tmp_path, num_shards=3) == []
