"""Fixtures of the drills: shards for whole runs, and Ray settings."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from tests.tinyrun import make_shards


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards, 230 images. Read only."""
    return make_shards(tmp_path_factory.mktemp("data") / "shards", num=230)
