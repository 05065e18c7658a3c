"""Metrics and live page of a real run in one process, while it trains and from its folder."""

import io
import json
import os
import re
import shutil
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from shards.errors import ConfigError
from streamssl.commands.live import ShowLive, live_address, show_live
from streamssl.pretrain.replay_page import replay_page
from streamssl.pretrain.run import pretrain
from streamssl.pretrain.run_gallery import read_gallery
from streamssl.runs.file_names import METRICS_ADDRESS
from streamssl.runs.placement import Placement
from streamssl.runs.run_end import is_training
from tests.tinyrun import make_shards, read_log, tiny_swav

NUM_STEPS = 6


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def state_at(address):
    return json.loads(get(f"{address}state"))


def samples_at(address):
    """Return the samples of /metrics by name and label values."""
    page = get(f"{address}metrics").decode()
    return {
        " ".join((sample.name.removeprefix("streamssl_"), *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def show(run):
    """Return the output of `streamssl live`."""
    output = io.StringIO()
    show_live(ShowLive(run=run), Console(file=output, soft_wrap=True), lambda: None)
    return output.getvalue()


class WatchedRun:
    """A run of six steps on shards with a broken one, and what it served meanwhile."""

    def __init__(self, folder):
        data = make_shards(folder / "data", num=96, per_shard=20)
        sorted(data.glob("*.tar"))[1].write_bytes(b"no tar at all" * 200)
        self.out, self.output = folder / "run", io.StringIO()
        console = Console(file=self.output, soft_wrap=True)
        config = tiny_swav(num_steps=NUM_STEPS)
        pretrain(config, str(data), self.out, Placement(readers=1), console, self.look)

    def look(self):
        """Read all pages; called after each step."""
        found = re.search(r"live page at (\S+)", self.output.getvalue())
        assert found is not None
        self.printed, self.address = found[1], live_address(self.out)
        deadline = time.monotonic() + 10
        while "disk_free_bytes out" not in (samples := samples_at(self.printed)) or (
            "lead_seconds" not in samples
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.samples, self.state = samples, state_at(self.printed)
        self.page, self.shown = get(self.printed), show(self.out)
        return False


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return WatchedRun(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def ended(watched):
    return watched.out


@pytest.fixture
def copy(ended, tmp_path):
    """A copy of the run with its settings and its log only."""
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((ended / name).read_bytes())
    return tmp_path


def test_a_run_in_one_process_serves_its_measurements(watched):
    """Names must be those of a run on a cluster; unmeasured gauges must be absent."""
    seen = watched.samples
    assert seen["train_step"] == seen["steps_wanted"] == NUM_STEPS
    assert seen["samples_total trained"] == 16 * NUM_STEPS <= seen["samples_total cropped"]
    assert seen["bucket_bytes_total file"] > 0 and seen["bucket_requests_total file"] > 0
    assert seen["bucket_errors_total file throttled"] == 0
    assert seen["memory_bytes driver"] > 1e8 and seen["buffer_limit_bytes reader"] > 0
    assert 0 < seen["disk_free_bytes out"] <= seen["disk_size_bytes out"]
    assert seen["gradient_norm"] > 0 and seen["queue_fill_ratio"] == 1
    phases = ("copy", "forward_backward", "collectives", "optimizer")
    inside = sum(seen[f"step_phase_seconds_total {phase}"] for phase in phases)
    assert 0.5 * seen["step_seconds_sum"] < inside <= seen["step_seconds_sum"] * 1.01
    assert seen["step_phase_seconds_total checkpoint"] > 0
    absent = {"world_size", "control_term", "knn_accuracy_ratio", "queue_drift"}
    assert not absent & seen.keys()


def test_the_live_page_shows_crops_and_rejects_while_the_run_trains(watched):
    """A page would be empty, or at another address than the printed one."""
    assert watched.printed == watched.address and b"Am I stalled?" in watched.page
    assert watched.state["run"]["name"] == "run"
    assert watched.state["run"]["num_steps"] == NUM_STEPS
    gallery = watched.state["sections"]["gallery"]
    assert gallery["crops"][-1]["step"] == 1
    assert [tile["reason"] for tile in gallery["rejects"]] == ["broken_tar"]
    shown = rf"{watched.out} is training now; its page is at {watched.printed}\n"
    assert re.fullmatch(shown, watched.shown)
    assert not is_training(watched.out) and live_address(watched.out) == ""
    assert not (watched.out / METRICS_ADDRESS).exists()


@pytest.mark.slow
def test_crops_of_an_ended_run_are_made_again(ended):
    """Only ids are kept; a page of last night would show no images."""
    with replay_page(ended) as address:
        deadline = time.monotonic() + 50
        while not (tile := state_at(address)["sections"]["gallery"]["crops"][0])["image"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert get(address.rstrip("/") + tile["image"]).startswith(b"\xff\xd8")


def test_the_page_of_an_ended_run_is_made_from_its_folder(ended, tmp_path):
    """A run of last night could not be checked in the morning."""
    lines = read_log(ended)
    shutil.copytree(ended, tmp_path / "run", ignore=shutil.ignore_patterns("gallery.json"))
    ended = tmp_path / "run"
    with replay_page(ended) as address:
        assert b"Am I stalled?" in get(address)
        state = state_at(address)
    history = state["history"]
    assert history["streamssl_loss"] == [line["loss"] for line in lines]
    assert history["streamssl_train_step"] == list(range(1, NUM_STEPS + 1))
    assert state["run"]["ended"] == pytest.approx(os.path.getmtime(ended / "metrics.jsonl"), abs=1)
    rejects = state["values"]['streamssl_rejects_total{reason="broken_tar"}']
    assert rejects == sum(line["num_rejects"] for line in lines) > 0
    answers = state["sections"]["answers"]
    assert answers["learning"]["short"] == "It is done."
    assert answers["progress"]["text"].startswith("Step 6 of 6, after")


def test_an_ended_run_opens_without_its_data(copy):
    """The numbers must remain after the bucket was emptied."""
    (copy / "gallery.json").write_text("{")
    with replay_page(copy) as address:
        state = state_at(address)
    assert len(state["history"]["time"]) == NUM_STEPS and "gallery" not in state["sections"]
    shown = rf"the page of {copy} is at http://127\.0\.0\.1:\d+/; Ctrl-C ends it\n"
    assert re.fullmatch(shown, show(copy))


def test_a_long_log_becomes_as_many_points_as_a_live_run_keeps(copy):
    """A log of a million lines would be too much for a browser."""
    line = read_log(copy)[0]
    lines = [json.dumps({**line, "step": step}) for step in range(1, 2001)]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with replay_page(copy) as address:
        steps = state_at(address)["history"]["streamssl_train_step"]
    assert len(steps) <= 601 and steps[0] == 1 and steps[-1] == 2000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\0\0",
        '{"cursor": null}',
        '{"cursor": {"reject_reasons": -7}}',
        '{"cursor": ',
    ],
)
def test_a_damaged_checkpoint_costs_only_the_counts_of_its_rejects(ended, copy, text):
    """A traceback for a run whose disk was full; an older checkpoint has counts, too."""
    shutil.copytree(ended / "checkpoints", copy / "checkpoints")
    newest, before = sorted(copy.glob("checkpoints/*/state.json"))[:-3:-1]
    before.write_text(newest.read_text())
    newest.write_text(text)
    counts = json.loads(before.read_text())["cursor"]["reject_reasons"]
    with replay_page(copy) as address:
        values = state_at(address)["values"]
    assert values['streamssl_rejects_total{reason="broken_tar"}'] == counts["broken_tar"] > 0


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.toml", "is not a run"), ("metrics.jsonl", "has no finished step")],
)
def test_folders_without_a_run_are_refused_in_one_sentence(copy, missing, message):
    """A stack trace for a typing error."""
    (copy / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        show(copy)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "\0", "[" * 100_000, '{"places": 3}', '{"places": [3]}'),
        *(
            json.dumps({"places": [{"shard": 0, "offset": 0, **wrong}]})
            for wrong in (
                *({"shard": "x"}, {"shard": 99}, {"shard": True}, {"offset": -1}, {"key": 7}),
                *({"offset": 10**30}, {"reason": []}, {"step": None}, {"epoch": 0.5}),
            )
        ),
    ],
)
def test_a_damaged_gallery_file_costs_only_the_images(tmp_path, text):
    """A run must not fail because of its page."""
    (tmp_path / "gallery.json").write_text(text)
    assert read_gallery(tmp_path, num_shards=3) == []


def test_a_gallery_file_of_an_earlier_version_is_read(tmp_path):
    """Old run folders would lose their images, because their rejects name no member."""
    place = {"shard": 0, "offset": 512, "key": "a", "reason": "empty", "detail": "no bytes"}
    (tmp_path / "gallery.json").write_text(json.dumps({"places": [place]}))
    (item,) = read_gallery(tmp_path, num_shards=3)
    assert (item.key, item.member) == ("a", "")
