"""Thousands of worlds of trainers that die, hang, freeze and come back, around `Membership`."""

import pytest

from tests.cluster.trainer_world import World


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_no_order_of_events_stops_the_training_or_forks_it(part):
    """What one order of events in a thousand breaks, a month of training meets."""
    for seed in range(1000 + 300 * part, 1300 + 300 * part):
        world = World(
            seed, loss=0.05 * (seed % 3), control_dies=0.5 * (seed % 2), wanted=1 + seed % 5
        )
        world.play(disturb_until=15.0)
        assert world.log >= world.num_steps
