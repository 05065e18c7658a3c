"""A run on a cluster that diverges: nothing wrong is saved, and the printed command goes on."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from streamssl import checkpoint
from tests.drills.processes import Run, started
from tests.tinyrun import read_log, tiny_swav

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def remedy(run: Run) -> list[str]:
    """Return the options that the newest message of a run says to add."""
    return shlex.split(re.findall(r"add (--from .*?) to the same command", run.text)[-1])


def test_a_run_that_diverges_on_two_trainers_goes_on_as_its_message_says(
    shards_folder: Path, tmp_path: Path
) -> None:
    """The state that was not finite was saved, and `--keep` deleted the good one for it.

    The rate of the second step makes weights of 1e27: they are finite, but no step from them is.
    So the first remedy cannot help, and the second one names the checkpoint before.
    """
    config = tiny_swav(save_every=1, keep=3)
    config = replace(config, optim=replace(config.optim, base_lr=1e30))
    out, options = tmp_path / "run", ("--cluster", "local", "--trainers", 2)
    with started(config, shards_folder, out, *options) as run:
        assert run.end() == 1, run.text
        first = remedy(run)
    assert "Traceback" not in run.text and "step-00000002 is finite" in run.text
    assert first == ["--from", "step-00000002", "--optim.base-lr", "5e+29"]
    with started(config, shards_folder, out, *first[:3], "0.05") as run:
        assert run.end() == 1, run.text
        second = remedy(run)
    assert second == ["--from", "step-00000001", "--optim.base-lr", "0.025"]
    with started(config, shards_folder, out, *second) as run:
        assert run.end() == 0, run.text
    assert "Traceback" not in run.text
    assert [fields["step"] for fields in read_log(out)] == list(range(1, 7))
    for path in out.rglob("state.safetensors"):
        assert checkpoint.find_not_finite(load_file(path)) is None
