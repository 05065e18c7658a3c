"""Threads or Ray, one reader or three: the same samples, the same losses, the same weights."""

from pathlib import Path

import pytest

from streamssl.pretrain.run import Placement
from tests.tinyrun import proof, stop_at, tiny_swav, train_here, weights

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# Into the second epoch, and long enough for a wish to stop that takes a moment to be heard.
CONFIG = tiny_swav(num_steps=120, save_every=120)


@pytest.fixture(scope="module")
def alone(shards_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one thread."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train_here(CONFIG, shards_folder, out)
    return out


@pytest.mark.parametrize(
    "placement",
    [
        Placement(readers=3),
        Placement(cluster="local", readers=3),
    ],
    ids=["3 threads", "3 actors"],
)
def test_where_it_runs_does_not_show_in_what_is_learned(
    placement: Placement, alone: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """Digests of every batch, every loss, and the last checkpoint are equal bit by bit."""
    train_here(CONFIG, shards_folder, tmp_path / "run", placement=placement)
    assert proof(tmp_path / "run") == proof(alone)
    assert weights(tmp_path / "run", 120) == weights(alone, 120)


def test_a_run_may_move_to_a_cluster_and_back(
    alone: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """Started on a laptop, continued on Ray: where is no part of a run."""
    out = tmp_path / "run"
    for step, placement in (
        (9, Placement(readers=2)),
        (17, Placement(cluster="local", readers=2)),
        (120, Placement(readers=1)),
    ):
        train_here(CONFIG, shards_folder, out, placement=placement, stop=stop_at(out, step))
    assert proof(out) == proof(alone)
    assert weights(out, 120) == weights(alone, 120)
