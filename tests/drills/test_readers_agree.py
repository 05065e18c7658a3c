"""Threads or Ray, one reader or three: samples, losses and weights are equal."""

from pathlib import Path

import pytest

from streamssl.runs.placement import Placement
from tests.tinyrun import proof, stop_at, tiny_swav, train_here, weights

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# Long enough for the second epoch, and for a stop that takes a few steps to arrive.
CONFIG = tiny_swav(num_steps=80, save_every=80)


@pytest.fixture(scope="module")
def alone(shards_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with one reader thread."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train_here(CONFIG, shards_folder, out)
    return out


@pytest.mark.parametrize(
    "placement",
    [
        Placement(readers=3),
        pytest.param(Placement(cluster="local", readers=3), marks=pytest.mark.nightly),
    ],
    ids=["3 threads", "3 actors"],
)
def test_the_placement_does_not_change_what_is_learned(
    placement: Placement, alone: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """Digests, losses and the last checkpoint must be bit-equal."""
    train_here(CONFIG, shards_folder, tmp_path / "run", placement=placement)
    assert proof(tmp_path / "run") == proof(alone)
    assert weights(tmp_path / "run", 80) == weights(alone, 80)


def test_a_run_may_move_to_a_cluster_and_back(
    alone: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """A run that starts in one process must resume on Ray, and back."""
    out = tmp_path / "run"
    for step, placement in (
        (9, Placement(readers=2)),
        (17, Placement(cluster="local", readers=2)),
        (80, Placement(readers=1)),
    ):
        train_here(CONFIG, shards_folder, out, placement=placement, stop=stop_at(out, step))
    assert proof(out) == proof(alone)
    assert weights(out, 80) == weights(alone, 80)
