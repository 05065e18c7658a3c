"""What tests of all planes share: small real shards, the images kept beside the repository."""

from pathlib import Path

import cv2
import pytest
import torch

from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import PackConfig, pack

# Which part of its cases a test with thousands of them runs.
_SHARE = 0.2
_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser):
    """`--share`: what is met once in ten thousand cases need not be looked for at every change."""
    parser.addoption("--share", type=float, default=_SHARE, help="part of the cases, up to 1")


@pytest.fixture(scope="session")
def share(request):
    """Which part of thousands of random cases is run: the first ones, so seeds keep their names."""
    return request.config.getoption("--share")


@pytest.fixture(scope="session", autouse=True)
def _one_core():
    """Tests run beside each other: libraries that start a thread a core would only wait."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def synthetic_shards(tmp_path_factory):
    """A folder of three shards with 96 labelled images of 32 pixels. Not to be written to."""
    out = tmp_path_factory.mktemp("synthetic") / "shards"
    pack(entries_from_synthetic(96, size=32), out, PackConfig(samples_per_shard=32))
    return out


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images beside the repository; tests of them are skipped without it."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    return _SHARED_DATA
