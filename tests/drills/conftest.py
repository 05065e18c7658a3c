"""Whole runs as processes, through the command line, and what to do to them."""

from pathlib import Path

import pytest

from tests.tinyrun import make_shards


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards, 230 pictures. Not to be written to."""
    return make_shards(tmp_path_factory.mktemp("data") / "shards", num=230)
