"""Slow readers: a predicate that sleeps for the seconds in a file, and uses no core."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

PACE = "STREAMSSL_DRILL_PACE"  # names the file, in the environment of the nodes


def sleep(_: dict[str, Any], __: object) -> bool:
    """Keep every image, after a pause."""
    time.sleep(float(Path(os.environ[PACE]).read_text()))
    return True


class Pace:
    """Seconds that an image takes, on clusters that are started after this."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self._path = folder / "pace"
        self.set(seconds)
        monkeypatch.setenv(PACE, str(self._path))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def set(self, seconds: float) -> None:
        """Change the seconds; atomically, since half a number would be a reject."""
        part = self._path.with_suffix(".part")
        part.write_text(str(seconds))
        part.replace(self._path)
