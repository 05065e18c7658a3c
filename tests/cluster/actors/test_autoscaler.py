"""Autoscaler in a simulated plant: nodes that boot, buckets with limits, empty pools."""

from itertools import pairwise

import pytest

from cluster.actors.autoscaler import ScalingConfig, parse_range
from shards.errors import ConfigError
from tests.cluster.scaled_plant import Plant, default, play

DEMAND, SPEED = 1000, 30  # 34 readers are as fast as the trainers


def set_demand(value):
    return lambda plant: setattr(plant, "demand", value)


@pytest.mark.parametrize("boot", [10, 60, 300])
@pytest.mark.parametrize("seed", range(2))
def test_readers_grow_until_trainers_do_not_wait_and_then_stay(boot, seed):
    """Each further change would start or stop a node in vain."""
    plant = Plant(DEMAND, SPEED, boot=boot, seed=seed)
    changes, starved = play(plant, default(), 7200)
    assert 34 <= len(plant.ready) <= 46
    targets = [target for _, target, _ in changes]
    assert targets == sorted(targets) and len(targets) <= 12
    settled = 12 * boot + 300
    assert not any(is_starved for now, is_starved in starved if now > settled)


@pytest.mark.parametrize("seed", range(2))
def test_noise_changes_nothing(seed):
    """Nodes would start and stop all night."""
    plant = Plant(200, SPEED, seed=seed)
    changes, _ = play(plant, default(), 20_000)
    assert [change for change in changes if change[0] > 1500] == []


def test_a_bucket_at_its_limit_gets_no_more_readers():
    """Twice the readers would cost twice, and make as much as before."""
    plant = Plant(DEMAND, SPEED, limit=400)
    changes, _ = play(plant, default(retry_seconds=3600), 3600)
    assert changes[-1][2] == "no gain" and len(plant.ready) == changes[-1][1] == 16
    assert plant.starting == {}


def test_a_lower_demand_empties_whole_nodes():
    """A node with one reader costs as much as a full one."""
    plant = Plant(DEMAND, SPEED)
    changes, starved = play(plant, default(), 5000, events=[(1500, set_demand(200))])
    down = [change for change in changes if change[0] > 1500]
    assert {reason for _, _, reason in down} == {"ample"}
    assert all(later[0] - sooner[0] >= 120 for sooner, later in pairwise(down))
    assert 7 <= len(plant.ready) <= 12 and len(plant.ready) % plant.per_node == 0
    assert not any(is_starved for now, is_starved in starved if now > 1500)


def test_a_single_node_loses_single_readers():
    """A laptop has no node to empty, and needs no idle processes."""
    plant = Plant(300, SPEED, per_node=1000, boot=5)
    changes, _ = play(plant, default(), 4000, events=[(1500, set_demand(100))])
    assert changes[-1][2] == "ample" and 4 <= len(plant.ready) <= 6


def test_without_trainers_the_minimum_is_kept():
    """Two hundred readers would wait for a broken trainer all night."""
    plant = Plant(DEMAND, SPEED)
    changes, _ = play(plant, default(), 6000, events=[(1500, set_demand(0))])
    assert changes[-1][2] == "trainers gone" and len(plant.ready) == 2


def test_the_next_pool_replaces_one_without_capacity():
    """Trainers would starve when spot machines run out."""
    plant = Plant(DEMAND, SPEED, room=(10, 1000))
    changes, starved = play(plant, default(retry_seconds=10**6), 4000, num_pools=2)
    assert "next pool" in {reason for _, _, reason in changes}
    assert len(plant.ready) >= 34 and not any(s for now, s in starved if now > 1500)


def test_without_any_capacity_the_present_readers_are_enough():
    """An autoscaler would try to launch machines for ever."""
    plant = Plant(DEMAND, SPEED, room=(10,))
    changes, _ = play(plant, default(retry_seconds=10**6), 2000)
    assert changes[-1][2] == "launch failed"
    assert len(plant.ready) == 10 and plant.starting == {}


def test_a_fixed_number_of_readers_never_changes():
    """`--readers 4` would mean something else."""
    changes, _ = play(Plant(DEMAND, SPEED), default(min_readers=4, max_readers=4), 3000)
    assert changes == []


@pytest.mark.parametrize(("text", "expected"), [("4", (4, 4)), (" 4 .. 200 ", (4, 200))])
def test_a_range_is_parsed(text, expected):
    """The commands of the deployment page would fail."""
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "0", "9..4", "4..", "..4", "four", "-1", "4...9", "4,9"])
def test_an_invalid_range_is_refused_with_an_example(text):
    """A typing error would cost money."""
    with pytest.raises(ConfigError, match=r"for example --readers 4 or --readers 4\.\.200"):
        parse_range(text)


def test_an_invalid_bound_is_refused():
    """A run without readers would wait for ever."""
    with pytest.raises(ConfigError, match="at least 1"):
        ScalingConfig(min_readers=0, max_readers=3)
