"""Scores of checkpoints: kept beside the run, read by whoever watches it."""

import shutil
from pathlib import Path

import pytest

from shards.errors import ConfigError
from streamssl.evaluation.score_run import iter_checkpoints
from streamssl.evaluation.scores import SCORES, KnnScore, keep_score, newest_score, read_scores
from streamssl.pretrain.replay_page import replay_page
from tests.streamssl.pretrain.test_live_run import state_at
from tests.streamssl.pretrain.test_run_metrics import scrape
from tests.tinyrun import tiny_swav, train_here


def score(step: int, accuracy: float = 50.0) -> KnnScore:
    return KnnScore(step, {20: accuracy, 200: accuracy / 2}, 1000, 100)


def test_scores_are_kept_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """An older checkpoint may be scored later; the last word on a step counts."""
    assert newest_score(tmp_path) is None and read_scores(tmp_path) == {}
    for one in (score(4), score(8), score(2), score(4, 60.0)):
        keep_score(tmp_path, one)
    assert newest_score(tmp_path) == score(4, 60.0)
    assert newest_score(tmp_path).headline == 60.0
    assert read_scores(tmp_path) == {4: score(4, 60.0), 8: score(8), 2: score(2)}


@pytest.mark.parametrize("torn", ["{", '{"step": 9', "[]", '{"step": 9, "knn": {}}', "\0\0"])
def test_a_line_that_is_no_score_is_passed_over(torn: str, tmp_path: Path) -> None:
    """The writer may have been killed; whoever reads may come at any moment."""
    keep_score(tmp_path, score(1))
    with (tmp_path / SCORES).open("a") as file:
        file.write(torn)
    assert newest_score(tmp_path) == score(1)
    assert list(read_scores(tmp_path)) == [1]


def test_the_newest_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    """It is asked for every second of a run."""
    for step in range(500):
        keep_score(tmp_path, score(step))
    assert newest_score(tmp_path) == score(499)


def test_a_run_is_followed_to_its_last_step(finished_run: Path, tmp_path: Path) -> None:
    """The newest checkpoint first, those in between left out, and an end."""
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


def test_a_run_shows_its_newest_score(shards_folder: Path, tmp_path: Path) -> None:
    """On /metrics while it trains, and at its step on the page of the run that has ended."""
    out = tmp_path / "run"
    train_here(tiny_swav(num_steps=2), shards_folder, out)
    keep_score(out, score(2, 62.5))
    found: list[float] = []

    def stop() -> bool:
        seen = scrape(out).get("knn_accuracy_ratio")
        found.extend([] if seen is None else [seen])
        return bool(found)

    train_here(tiny_swav(num_steps=100_000), shards_folder, out, stop=stop)
    assert found == [0.625]
    with replay_page(out) as page:
        state = state_at(page)
    history = dict(
        zip(
            state["history"]["streamssl_train_step"],
            state["history"]["streamssl_knn_accuracy_ratio"],
            strict=True,
        )
    )
    assert history[1] is None and history[2] == 0.625
