"""Lease table in thousands of random worlds of failing readers: `tests.cluster.lease_world`."""

import pytest

from tests.cluster.lease_world import World

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("first_seed", "num_worlds", "num_tasks", "num_events"),
    [(10_000, 20_000, None, None), (0, 100, 200, 2500)],
    ids=["many short worlds", "few long worlds"],
)
def test_no_order_of_events_breaks_a_promise(
    first_seed: int,
    num_worlds: int,
    num_tasks: int | None,
    num_events: int | None,
    share: float,
) -> None:
    """A large cluster meets the order of events that breaks one in ten thousand every day."""
    for seed in range(first_seed, first_seed + round(num_worlds * share)):
        world = World(seed) if num_tasks is None else World(seed, num_tasks=num_tasks)
        try:
            world.run() if num_events is None else world.run(num_events)
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error
