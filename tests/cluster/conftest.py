"""One Ray for all tests of a module: it takes seconds to start."""

from collections.abc import Iterator

import pytest

from cluster.feed import ray_session


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """A Ray of three cores: two for the readers of the module, one for those of a test."""
    with ray_session("local", 3, 64 << 20):
        yield
