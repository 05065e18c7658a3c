"""The check of one GPU, on the CPU: its parts work, and one that fails stops no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_check.__main__ import PARTS

pytestmark = pytest.mark.slow


def check(*options: str) -> tuple[int, dict[str, dict[str, object]]]:
    """Return the exit code and the lines by part."""
    command = [sys.executable, "-m", "tests.gpu_check", "--device", "cpu", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {line["part"]: line for line in lines}


@pytest.mark.timeout(400)
def test_every_part_runs_on_a_cpu() -> None:
    """A mistake would show on the lent GPU, whose minutes are few."""
    code, lines = check()
    assert code == 0
    assert list(lines) == list(PARTS)
    assert [line for line in lines.values() if line["ok"] is not True] == []


def test_a_part_that_fails_stops_no_other() -> None:
    """The minutes of the GPU would be lost with the first mistake."""
    code, lines = check("--only", "tar_rates", "view_rates", "--data", "/no/such/folder")
    assert code == 1
    assert "/no/such/folder" in str(lines["tar_rates"]["error"])
    assert lines["view_rates"]["ok"] is True
