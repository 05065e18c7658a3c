"""Readers that sleep: a predicate that takes as long as a file says, and no core."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

PACE = "STREAMSSL_DRILL_PACE"  # names the file, in the environment of the nodes


def sleep(_: dict[str, Any], __: object) -> bool:
    """Keep every picture, after a while."""
    time.sleep(float(Path(os.environ[PACE]).read_text()))
    return True


def set_pace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to write seconds into; for clusters that are started from now on."""
    pace = folder / "pace"
    pace.write_text("0")
    monkeypatch.setenv(PACE, str(pace))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return pace
