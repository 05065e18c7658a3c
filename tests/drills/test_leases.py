"""The lease table in thousands of worlds of readers that break: `tests.cluster.lease_world`."""

import pytest

from tests.cluster.lease_world import World

pytestmark = pytest.mark.slow

_WORLDS = 5000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_no_order_of_events_breaks_a_promise(part: int) -> None:
    """The order that breaks one in ten thousand comes once a day in a large cluster."""
    for seed in range(10_000 + part * _WORLDS, 10_000 + (part + 1) * _WORLDS):
        try:
            World(seed).run()
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error


@pytest.mark.timeout(300)
def test_no_long_story_breaks_a_promise() -> None:
    """What is remembered of readers and chunks that are gone must not add up to a mistake."""
    for seed in range(100):
        try:
            World(seed, num_tasks=200).run(2500)
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error
