"""Retrieval: average precision and ranks against a plain reference; the command."""

from pathlib import Path

import numpy as np
import pytest

from shards.errors import ConfigError, UserError
from streamssl.cli import main
from streamssl.evaluation.retrieval import retrieve
from streamssl.evaluation.score_run import retrieval_of_run
from tests.tinyrun import make_shards


def reference(qx, qy, gx, gy, k):
    """Return average precision and rank-k, computed query by query."""
    precisions, hits = [], []
    for x, y in zip(qx, qy, strict=True):
        cosines = gx @ x / np.linalg.norm(gx, axis=1) / np.linalg.norm(x)
        matches = (gy == y)[np.argsort(-cosines, kind="stable")]
        if not matches.any():
            continue
        places = np.flatnonzero(matches)
        precisions.append(np.mean([(n + 1) / (place + 1) for n, place in enumerate(places)]))
        hits.append(places[0] < k)
    return 100 * np.mean(precisions), 100 * np.mean(hits), len(hits)


def drawn(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 6)).astype(np.float32), rng.integers(0, 12, num)


def test_scores_equal_a_plain_reference() -> None:
    """Several blocks of queries, and labels that the gallery lacks, must not change the means."""
    (qx, qy), (gx, gy) = drawn(40, 1), drawn(50, 2)
    gallery_x, gallery_y = gx[gy != 3], gy[gy != 3]
    found = retrieve(qx, qy, gallery_x, gallery_y, ranks=(1, 4), num_rows=7)
    for k in (1, 4):
        precision, hits, num = reference(qx, qy, gallery_x, gallery_y, k)
        assert found.mean_average_precision == pytest.approx(precision, abs=1e-4)
        assert found.rank[k] == pytest.approx(hits)
    assert (found.num_queries, found.num_unmatched) == (num, 40 - num) and num < 40


def test_one_match_of_three_gives_the_scores_computed_by_hand() -> None:
    """The match comes first for one query and last for the other."""
    gallery, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    query = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert retrieve(query, np.array([0]), gallery, labels).mean_average_precision == 100
    last = retrieve(query, np.array([2]), gallery, labels, ranks=(1, 3))
    assert last.mean_average_precision == pytest.approx(100 / 3)
    assert last.rank == {1: 0.0, 3: 100.0}


def test_features_that_cannot_be_ranked_are_refused() -> None:
    """Scores of features that do not fit together mean nothing."""
    (qx, qy), (gx, gy) = drawn(4, 1), drawn(5, 2)
    with pytest.raises(UserError, match=r"no query has its identity.*number their identities"):
        retrieve(qx, qy, gx, gy + 20)
    with pytest.raises(UserError, match=r"6 numbers and gallery features 3; .*one encoder"):
        retrieve(qx, qy, gx[:, :3], gy)
    with pytest.raises(ConfigError, match=r"ranks=\(0,\); each rank must be 1 or more"):
        retrieve(qx, qy, gx, gy, ranks=(0,))
    with pytest.raises(UserError, match=r"gallery features \(5, 6\) with labels \(4,\)"):
        retrieve(qx, qy, gx, gy[:4])


def test_an_image_in_the_gallery_is_found_first(finished_run: Path, shards_folder: Path) -> None:
    """Labels and features of queries and gallery must belong to the same images."""
    data = str(shards_folder)
    encoders = ("raw pixels", "trained")
    scores = retrieval_of_run(finished_run, data, data, encoders, ranks=(1,))
    assert (scores.gallery.num_images, scores.step) == (160, 6)
    for found in scores.by_encoder.values():
        assert found.rank == {1: 100.0} and 0 < found.mean_average_precision < 100


def test_the_command_prints_a_table(
    finished_run: Path, shards_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has one row for each encoder and one column for each rank."""
    query = make_shards(tmp_path / "query", num=20, seed=3)
    arguments = ["--run", str(finished_run), "--query", str(query), "--gallery", str(shards_folder)]
    assert main(["evaluate", "retrieval", *arguments, "--baselines", "--ranks", "1", "3"]) == 0
    shown = capsys.readouterr().out
    assert "20 queries, 160 images in the gallery" in shown
    for word in ("mAP", "rank-1", "rank-3", "raw pixels", "untrained", "trained"):
        assert word in shown
