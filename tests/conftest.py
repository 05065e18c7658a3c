"""Fixtures of all planes: small real shards, and the images kept beside the repository."""

import gc
import os
from pathlib import Path

import cv2
import pytest

from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import PackConfig, pack

# Tests run beside each other: a library that starts a thread for each core would only wait. Child
# processes inherit the setting, and tests that need no torch do not import it for this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
cv2.setNumThreads(1)

# Which part of its cases a test with thousands of them runs.
_SHARE = 0.1
_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser):
    """Add `--share`: a fault that one case in ten thousand shows is searched for at night."""
    parser.addoption("--share", type=float, default=_SHARE, help="part of the cases, up to 1")


def pytest_sessionstart():
    """Collect no garbage while a million objects of libraries are made, a tenth of that time."""
    gc.disable()


def pytest_collection_finish():
    """Look no more at the objects of imported modules, which live as long as the process."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    """Let libraries free their objects at the end, or some report leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def share(request):
    """Return the part of thousands of random cases that runs: the first ones, so seeds stay."""
    return request.config.getoption("--share")


@pytest.fixture(scope="session")
def synthetic_shards(tmp_path_factory):
    """A folder of three shards with 96 labelled images of 32 pixels. Read only."""
    out = tmp_path_factory.mktemp("synthetic") / "shards"
    pack(entries_from_synthetic(96, size=32), out, PackConfig(samples_per_shard=32))
    return out


@pytest.fixture(scope="session")
def shared_data():
    """Return the folder of real images beside the repository; skip the test without it."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    return _SHARED_DATA
