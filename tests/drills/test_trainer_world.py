"""Trainer membership in random worlds of trainers that die, hang, freeze and return."""

import pytest

from tests.cluster.trainer_world import World


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_order_of_events_stops_the_training_or_forks_it(share: float) -> None:
    """A month of training meets the order of events that breaks one in a thousand."""
    for seed in range(1000, 1000 + round(1500 * share)):
        world = World(
            seed, loss=0.05 * (seed % 3), control_dies=0.5 * (seed % 2), wanted=1 + seed % 5
        )
        world.play(disturb_until=15.0)
        assert world.log >= world.num_steps
