"""`streamssl drill` breaks a running run, watches it, and sees it recover."""

import re
from pathlib import Path

import pytest

from tests.drills.cluster_runs import check_steps, endless, stop
from tests.drills.processes import asked, started

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CONFIG = endless()


def drilled(fault: str, *more: object) -> str:
    """Return the output of the command, which saw the run recover."""
    done = asked("drill", fault, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_drill_reports_detection_recovery_and_cost(shards_folder: Path, tmp_path: Path) -> None:
    """The command must report both times and the cost; lost steps must repeat on their samples."""
    out = tmp_path / "run"
    options = ("--cluster", "local", "--readers", 2)
    with started(CONFIG, shards_folder, out, *options) as run:
        run.wait_for_step(10)
        for fault, role, cost in (
            ("kill-reader", "reader", r"lost: no step and no sample"),
            (
                "kill-trainer",
                "trainer",
                r"lost: the steps up to \d+, which only trainer-1\.\d+ had",
            ),
        ):
            text = drilled(fault, out)
            assert re.match(rf"{fault}: {role}-1\.\d+ on node", text), text
            assert re.search(r"noticed: after [\d.]+ s; next step finished: after", text), text
            assert f"1 {role}s lost" in text and re.search(cost, text), text
        stop(run)
    check_steps(CONFIG, shards_folder, out)
