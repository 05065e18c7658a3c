"""How many readers: a simulated plant with nodes that boot, buckets with limits, empty pools."""

from itertools import pairwise

import pytest

from cluster.actors.autoscaler import ScalingConfig, parse_range
from shards.errors import ConfigError
from tests.cluster.scaled_plant import Plant, default, play

EATEN, MADE = 1000, 30  # 34 readers keep up with the trainers


def set_eaten(value):
    return lambda plant: setattr(plant, "eaten", value)


@pytest.mark.parametrize("boot", [10, 60, 300])
@pytest.mark.parametrize("seed", range(4))
def test_it_grows_until_nobody_waits_and_then_stays(boot, seed):
    """Every further change would be a node started or stopped for nothing."""
    plant = Plant(EATEN, MADE, boot=boot, seed=seed)
    changes, starved = play(plant, default(), 7200)
    assert 34 <= len(plant.ready) <= 46
    targets = [target for _, target, _ in changes]
    assert targets == sorted(targets) and len(targets) <= 12
    settled = 12 * boot + 300
    assert not any(is_starved for now, is_starved in starved if now > settled)


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_moves_nothing(seed):
    """A controller that follows the noise starts and stops nodes all night."""
    plant = Plant(200, MADE, seed=seed)
    changes, _ = play(plant, default(), 20_000)
    assert [change for change in changes if change[0] > 1500] == []


def test_what_a_bucket_does_not_give_is_not_asked_for_with_more_readers():
    """Twice the readers on the same bucket cost twice, and make as much as before."""
    plant = Plant(EATEN, MADE, limit=400)
    changes, _ = play(plant, default(retry_seconds=3600), 3600)
    assert changes[-1][2] == "no gain" and len(plant.ready) == changes[-1][1] == 16
    assert plant.starting == {}


def test_when_the_trainers_eat_less_whole_nodes_are_emptied():
    """A node with one reader on it is paid for like a full one."""
    plant = Plant(EATEN, MADE)
    changes, starved = play(plant, default(), 5000, events=[(1500, set_eaten(200))])
    down = [change for change in changes if change[0] > 1500]
    assert {reason for _, _, reason in down} == {"ample"}
    assert all(later[0] - sooner[0] >= 120 for sooner, later in pairwise(down))
    assert 7 <= len(plant.ready) <= 12 and len(plant.ready) % plant.per_node == 0
    assert not any(is_starved for now, is_starved in starved if now > 1500)


def test_on_a_single_node_readers_are_let_go_one_by_one():
    """A laptop has no node to empty, and no use for idle processes."""
    plant = Plant(300, MADE, per_node=1000, boot=5)
    changes, _ = play(plant, default(), 4000, events=[(1500, set_eaten(100))])
    assert changes[-1][2] == "ample" and 4 <= len(plant.ready) <= 6


def test_when_the_trainers_are_gone_the_least_is_kept():
    """Two hundred readers that wait for a broken trainer cost a night."""
    plant = Plant(EATEN, MADE)
    changes, _ = play(plant, default(), 6000, events=[(1500, set_eaten(0))])
    assert changes[-1][2] == "trainers gone" and len(plant.ready) == 2


def test_a_pool_without_room_is_followed_by_the_next_one():
    """Spot machines run out; the trainers need not starve for it."""
    plant = Plant(EATEN, MADE, room=(10, 1000))
    changes, starved = play(plant, default(retry_seconds=10**6), 4000, num_pools=2)
    assert "next pool" in {reason for _, _, reason in changes}
    assert len(plant.ready) >= 34 and not any(s for now, s in starved if now > 1500)


def test_without_room_anywhere_it_takes_what_there_is_and_says_so():
    """Readers that wait for machines that never come keep an autoscaler trying."""
    plant = Plant(EATEN, MADE, room=(10,))
    changes, _ = play(plant, default(retry_seconds=10**6), 2000)
    assert changes[-1][2] == "launch failed"
    assert len(plant.ready) == 10 and plant.starting == {}


def test_a_fixed_number_stays_what_it_is():
    """`--readers 4` must not mean something else."""
    changes, _ = play(Plant(EATEN, MADE), default(min_readers=4, max_readers=4), 3000)
    assert changes == []


@pytest.mark.parametrize(("text", "expected"), [("4", (4, 4)), (" 4 .. 200 ", (4, 200))])
def test_a_range_is_read(text, expected):
    """What the page of the deployment shows has to work."""
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "0", "9..4", "4..", "..4", "four", "-1", "4...9", "4,9"])
def test_a_wrong_range_is_refused_with_an_example(text):
    """A typing error would become a bill."""
    with pytest.raises(ConfigError, match=r"for example --readers 4 or --readers 4\.\.200"):
        parse_range(text)


def test_a_wrong_bound_is_refused():
    """No reader at all would wait for ever."""
    with pytest.raises(ConfigError, match="at least 1"):
        ScalingConfig(min_readers=0, max_readers=3)
