"""Shards and a run that many tests look at and none may change."""

from pathlib import Path

import pytest

from tests.tinyrun import make_shards, tiny_swav, train_here


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, 160 labelled images of ten classes. Not to be written to."""
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def finished_run(shards_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tiny_swav` after its six steps. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train_here(tiny_swav(), shards_folder, out)
    return out
