"""Fixture of one Ray for all tests of the control plane: a Ray takes seconds to start."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from cluster.driver.ray_session import ray_session


@pytest.fixture(scope="package")
def one_ray() -> Iterator[None]:
    """Start a Ray of three cores: two for the actors of a module, one for those of a test."""
    with ray_session("local", 3, 64 << 20):
        yield
