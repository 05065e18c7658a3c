"""Readers are killed in the middle of a run: it costs time, and not a sample."""

import re
import urllib.request
from pathlib import Path

import pytest

from tests.drills.processes import started
from tests.tinyrun import proof, tiny_swav, train_here, weights

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def readers_lost(text: str) -> float:
    """What the run that wrote `text` says on /metrics."""
    url = re.findall(r"metrics at (\S+)", text)[-1]
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
    found = re.search(r"^streamssl_readers_lost_total (\S+)$", page, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_a_killed_reader_costs_no_sample(shards_folder: Path, tmp_path: Path) -> None:
    """Two readers die one after the other; batches, losses and weights do not show it."""
    # Little may lie ahead, so that the run needs its readers all the time.
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
                lambda number=number: readers_lost(run.text) > number, f"loss {number + 1}"
            )
        assert run.end() == 0, run.text
    assert "raylet" not in run.text  # Ray would print ten lines for each
    assert proof(broken) == proof(unbroken)
    assert weights(broken, 300) == weights(unbroken, 300)
