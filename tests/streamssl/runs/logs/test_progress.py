"""Progress: one live line on a terminal, plain lines in a file."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from streamssl.runs.logs.progress import Progress


def shown(num_steps: int, *, terminal: bool, steps: list[int], start: int = 0) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with Progress(num_steps, start, console) as progress:
        for step in steps:
            progress.step(step, 1.23456, 100, 3, 1.5, 0.5)
    return text.getvalue()


def test_a_file_gets_few_plain_lines() -> None:
    """The log of a batch job needs no escape codes and no line for each step."""
    lines = shown(101, terminal=False, steps=[1, 2, 3]).splitlines()
    assert lines == [
        "step 1/101 · loss 1.2346 · 50 images/s · data wait 25.0% · 3 rejected · 3:20 left"
    ]


def test_the_last_step_is_always_shown() -> None:
    """The end of a log must show how the run ended."""
    lines = shown(3, terminal=False, steps=[1, 2, 3]).splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("step 3/3 ") and lines[-1].endswith("9 rejected · 0:00 left")


def test_a_terminal_gets_one_live_line() -> None:
    """The live line must be removed when the run ends."""
    text = shown(10, terminal=True, steps=[1, 2])
    assert "step 2/10" in text
    visible = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.splitlines()[-1])
    assert visible.strip() == ""


def test_totals_count_this_start_only() -> None:
    """Images/s of a resumed run must not count earlier steps."""
    console = Console(quiet=True)
    with Progress(100, 90, console) as progress:
        for step in (91, 92):
            progress.step(step, 1.0, 64, 1, 0.75, 0.25)
    assert (progress.num_samples, progress.num_rejects) == (128, 2)
    assert (progress.seconds, progress.data_wait_seconds) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("steps", "expected"), [(31, "1:00 left"), (1801, "1:00:00 left"), (2, "0:02 left")]
)
def test_time_left_is_shown_in_hours_and_minutes(steps: int, expected: str) -> None:
    """Seconds alone cannot be read for a run of days."""
    assert shown(steps, terminal=False, steps=[1]).strip().endswith(expected)


def test_an_output_on_a_full_disk_does_not_end_the_run() -> None:
    """`pretrain > log` would lose hours of training for a line of progress."""
    with io.TextIOWrapper(Path("/dev/full").open("wb", buffering=0), write_through=True) as full:
        console = Console(file=full, soft_wrap=True)
        with Progress(2, 0, console) as progress:
            progress.step(2, 1.0, 16, 0, 0.5, 0.0)
            progress.message("a warning")
        assert progress.num_samples == 16
