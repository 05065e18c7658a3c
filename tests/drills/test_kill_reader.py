"""Readers are killed during a run: the run loses time and no sample."""

from pathlib import Path

import pytest

from tests.drills.processes import started
from tests.tinyrun import proof, tiny_swav, train_here, weights

pytestmark = [pytest.mark.nightly, pytest.mark.ray]


def test_a_killed_reader_costs_no_sample(shards_folder: Path, tmp_path: Path) -> None:
    """Batches, losses and weights must be those of a run whose readers live."""
    # A short lookahead: the run needs its readers all the time.
    config = tiny_swav(num_steps=300, save_every=300)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train_here(config, shards_folder, unbroken)
    options = ("--cluster", "local", "--readers", "2", "--stream.num-lookahead-blocks", "1")
    with started(config, shards_folder, broken, *options) as run:
        for number, step in enumerate((20, 60)):
            run.wait_for_step(step)
            run.wait_for(lambda: len(run.readers()) > 0, "a reader")
            run.readers()[0].kill()
            run.wait_for(
                lambda number=number: run.metric("readers_lost_total") > number,
                f"loss {number + 1}",
            )
        assert run.end() == 0, run.text
    assert "raylet" not in run.text  # Ray would print ten lines for each
    assert proof(broken) == proof(unbroken)
    assert weights(broken, 300) == weights(unbroken, 300)
