"""Shards and a finished run for many tests. Read only."""

from pathlib import Path

import pytest

from tests.tinyrun import make_shards, tiny_swav, train_here


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards with 160 labelled images of ten classes. Read only."""
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def finished_run(shards_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tiny_swav` after its six steps. Read only."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train_here(tiny_swav(), shards_folder, out)
    return out
