"""SIGTERM with readers on Ray, as a drained node, a scheduler and `ray job stop` send it."""

import signal
from pathlib import Path

import pytest

from streamssl import checkpoint
from tests.drills.processes import started
from tests.tinyrun import tiny_swav

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_sigterm_saves_although_ray_installs_its_own_handler(
    shards_folder: Path, tmp_path: Path
) -> None:
    """With Ray's handler a run would lose up to --save-every steps."""
    config = tiny_swav(num_steps=5000, save_every=5000)
    out = tmp_path / "run"
    with started(config, shards_folder, out, "--cluster", "local") as run:
        run.wait_for_step(5)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.text
    assert checkpoint.list_checkpoints(out)[-1].name == f"step-{run.last_step:08d}"
    assert "SIGTERM received" not in run.text and "Traceback" not in run.text
