"""Pictures that kill decoders, in whole streams: they cost themselves, and nobody else."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.fixed_readers import RayReaders
from cluster.session import ray_session
from shards.journal import Journal
from tests.drills.poisoned import expected, lines, make_poisoned, open_poisoned
from tests.shards.killers import NULL, SEGFAULT, killer_job

pytestmark = pytest.mark.slow


@pytest.mark.ray
def test_readers_that_die_of_a_picture_cost_that_picture(tmp_path: Path) -> None:
    """Two killers in neighbouring chunks: the stream is the one that refuses them, bit by bit, and
    in the second pass nobody dies of them again."""
    shards = make_poisoned(tmp_path / "shards", SEGFAULT, NULL)
    manifest, order = open_poisoned(shards)
    journal = Journal(manifest.digest, order.digest)
    lost: list[None] = []
    with (
        ray_session("local", 2, 64 << 20),
        RayReaders(manifest, killer_job(), 2, on_lost=lambda: lost.append(None)) as readers,
    ):
        found = list(lines(order, readers.submit, journal))
        lost_in_all = len(lost)
        known = list(lines(order, readers.submit, journal))
    assert found == known == expected(shards)
    assert found[-1].endswith("{'kills_decoder': 4}")
    assert {entry.kind for entry in journal.entries} == {"quarantine"}
    assert len(journal.entries) == 2
    # Two deaths accuse a chunk; a chunk may be in the hands of two readers before it is known.
    assert 2 <= lost_in_all <= 8
    assert len(lost) == lost_in_all


def test_a_trainer_that_dies_of_a_picture_is_mended_at_the_third_start(tmp_path: Path) -> None:
    """On threads there is nobody else to die; whoever starts it again must not do so for ever."""
    shards, run = make_poisoned(tmp_path / "shards", SEGFAULT), tmp_path / "run"
    command = [sys.executable, "-m", "tests.drills.poisoned", str(shards), str(run)]
    for _ in range(2):
        died = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert died.returncode == -signal.SIGSEGV, died.stderr
        assert (run / ".crashes").exists()
    went_on = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert went_on.returncode == 0, went_on.stderr
    assert went_on.stdout.splitlines() == expected(shards)
    assert not (run / ".crashes").exists()
