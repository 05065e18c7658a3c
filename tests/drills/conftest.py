"""Whole runs as processes, through the command line, and what to do to them."""

import os
from pathlib import Path

import pytest

# Settled before Ray is imported: left open, it would write a token into the home directory.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from tests.tinyrun import make_shards


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards, 230 images. Not to be written to."""
    return make_shards(tmp_path_factory.mktemp("data") / "shards", num=230)
