"""Scores of checkpoints: kept in the folder of the run, shown by the run."""

import json
import re
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import ConfigError
from streamssl.evaluation.score_run import iter_checkpoints
from streamssl.evaluation.scores import (
    SCORES,
    KnnScore,
    find_untrained,
    keep_score,
    newest_score,
    read_scores,
)
from streamssl.pretrain.replay_page import replay_page
from streamssl.runs.file_names import METRICS_ADDRESS
from tests.tinyrun import tiny_swav, train_here


def score(step: int, accuracy: float = 50.0) -> KnnScore:
    return KnnScore(step, {20: accuracy, 200: accuracy / 2}, 1000, 100)


def read_url(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def test_scores_are_kept_in_the_order_of_computation(tmp_path: Path) -> None:
    """An older checkpoint may be scored later, and a step may be scored again."""
    assert newest_score(tmp_path) is None and read_scores(tmp_path) == {}
    for one in (score(4), score(8), score(2), score(4, 60.0)):
        keep_score(tmp_path, one)
    assert newest_score(tmp_path) == score(4, 60.0)
    assert newest_score(tmp_path).headline == 60.0
    assert read_scores(tmp_path) == {4: score(4, 60.0), 8: score(8), 2: score(2)}
    for step in range(500):  # more than the tail that `newest_score` reads
        keep_score(tmp_path, score(step))
    assert newest_score(tmp_path) == score(499)


@pytest.mark.parametrize(
    "torn", ["{", '{"step": 9', "[]", '{"step": 9, "knn": {}}', "\0\0", "\udcff"]
)
def test_a_torn_line_is_skipped(torn: str, tmp_path: Path) -> None:
    """The writer may be killed while it writes."""
    keep_score(tmp_path, score(1))
    with (tmp_path / SCORES).open("ab") as file:
        file.write(torn.encode("utf-8", "surrogateescape"))
    assert newest_score(tmp_path) == score(1)
    assert list(read_scores(tmp_path)) == [1]


def test_half_a_line_costs_only_itself(tmp_path: Path) -> None:
    """The next score would be written behind it, and be lost with it."""
    keep_score(tmp_path, score(1))
    with (tmp_path / SCORES).open("ab") as file:
        file.write(b'{"step": 2, "kn')
    keep_score(tmp_path, score(3))
    assert list(read_scores(tmp_path)) == [1, 3] and newest_score(tmp_path) == score(3)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"step": "9"}, {"step": -1}, {"knn": []}, {"knn": {"x": 1.0}}, {"knn": {"20": None}}),
        *({"knn": {"20": 1e400}}, {"knn": {"20": 300}}, {"num_train": 1.5}, {"sets": 3}),
        *({"untrained": {"20": "x"}}, {"num_left_out": None}),
    ],
)
def test_a_score_with_other_types_is_skipped(wrong: dict[str, object], tmp_path: Path) -> None:
    """The page of the run, or the next evaluation, would end in a traceback."""
    keep_score(tmp_path, score(1))
    fields = json.loads((tmp_path / SCORES).read_text())
    with (tmp_path / SCORES).open("a") as file:
        file.write(json.dumps({**fields, "step": 2, **wrong}) + "\n")
    assert list(read_scores(tmp_path)) == [1] and find_untrained(tmp_path, "") == {}


def test_the_untrained_encoder_is_remembered_for_its_sets(tmp_path: Path) -> None:
    """A score below it was printed without a word, and was taken for success."""
    keep_score(tmp_path, replace(score(0), sets="a", untrained={20: 55.0, 200: 20.0}))
    keep_score(tmp_path, replace(score(4), sets="b", untrained={20: 10.0}))
    assert find_untrained(tmp_path, "a") == {20: 55.0, 200: 20.0}
    assert find_untrained(tmp_path, "c") == {}
    worse = replace(score(8), untrained=find_untrained(tmp_path, "a")).below_untrained
    assert worse.startswith("the trained encoder scores 50.0 % with k=20, below the 55.0 % of")
    assert replace(score(8), untrained={20: 50.0}).below_untrained == ""
    assert score(8).below_untrained == ""


def test_a_run_is_followed_to_its_last_step(finished_run: Path, tmp_path: Path) -> None:
    """The newest checkpoint comes first, those in between are skipped, and following ends."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    later = [path.rename(tmp_path / path.name) for path in sorted((run / "checkpoints").iterdir())]
    later[0].rename(run / "checkpoints" / later[0].name)
    followed = iter_checkpoints(run)
    assert next(followed).name == "step-00000002"
    for path in later[1:]:
        path.rename(run / "checkpoints" / path.name)
    assert [path.name for path in followed] == ["step-00000006"]
    with pytest.raises(ConfigError, match=r"is not the folder of a run .* leave --follow out"):
        next(iter_checkpoints(tmp_path))


@pytest.mark.slow
def test_a_run_shows_its_newest_score(
    shards_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """/metrics shows it while the run trains, the replayed page at its step."""
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    keep_score(out, score(2, 62.5))
    found: list[float] = []

    def stop() -> bool:
        page = read_url(f"{(out / METRICS_ADDRESS).read_text()}/metrics")
        found.extend(map(float, re.findall(r"^streamssl_knn_accuracy_ratio (\S+)$", page, re.M)))
        return bool(found)

    train_here(tiny_swav(num_steps=500), shards_folder, out, stop=stop)
    assert found == [0.625]
    with replay_page(out) as page:
        history = json.loads(read_url(f"{page}state"))["history"]
    accuracy = dict(
        zip(history["streamssl_train_step"], history["streamssl_knn_accuracy_ratio"], strict=True)
    )
    assert accuracy[1] is None and accuracy[2] == 0.625
