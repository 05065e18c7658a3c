"""A raylet that dies under the driver: a sentence, no orphans, and the same command goes on."""

from pathlib import Path

import psutil
import pytest

from streamssl.checkpoint import list_checkpoints
from tests.drills.cluster_runs import check_steps, endless, stop
from tests.drills.processes import started

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_raylet_that_dies_is_told(shards_folder: Path, tmp_path: Path) -> None:
    """Ray ends the driver without a word, and its other processes stay."""
    config, out = endless(save_every=10), tmp_path / "run"
    with started(config, shards_folder, out, "--cluster", "local") as run:
        run.wait_for(lambda: list_checkpoints(out) != [], "checkpoint")
        family = psutil.Process(run.process.pid).children(recursive=True)
        (raylet,) = [child for child in family if child.name() == "raylet"]
        raylet.kill()
        assert run.end() == 1, run.text
    assert "Traceback" not in run.text
    *_, told, goes_on = run.text.splitlines()
    assert told.startswith("streamssl: the raylet of Ray on this machine ended"), run.text
    assert "--stream.max-bytes" in told and "raylet.out" in told
    assert goes_on.startswith("streamssl: step ") and "the same command continues" in goes_on
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    with started(config, shards_folder, out, "--cluster", "local") as again:
        again.wait_for_step(35)
        stop(again)
    assert check_steps(config, shards_folder, out) >= 35
