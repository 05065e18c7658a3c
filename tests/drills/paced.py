"""Readers that sleep: a predicate that takes as long as a file says, and no core."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

PACE = "STREAMSSL_DRILL_PACE"  # names the file, in the environment of the nodes


def sleep(_: dict[str, Any], __: object) -> bool:
    """Keep every image, after a while."""
    time.sleep(float(Path(os.environ[PACE]).read_text()))
    return True


class Pace:
    """How long an image takes, on clusters that are started from now on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self._path = folder / "pace"
        self.set(seconds)
        monkeypatch.setenv(PACE, str(self._path))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def set(self, seconds: float) -> None:
        """From now on; at once, since half a number would be a reject."""
        part = self._path.with_suffix(".part")
        part.write_text(str(seconds))
        part.replace(self._path)
