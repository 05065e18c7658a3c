"""What dies is made again: how soon, where not, and when that has to end."""

import random

import pytest

from cluster.actors.restart_policy import Supervisor, SupervisorConfig


def supervised(role="reader", count=1, now=0.0, **config):
    supervisor = Supervisor(1, SupervisorConfig(**config))
    supervisor.want(role, count)
    makes = supervisor.orders(now)
    for make in makes:
        supervisor.started(make.name, "node", now)
    return supervisor, [make.name for make in makes]


def next_after(supervisor, now, patience=200.0):
    """(when, order) of the next thing that is made."""
    until = now + patience
    while now < until:
        makes = supervisor.orders(now)
        if makes:
            return now, makes[0]
        now += 0.1
    raise AssertionError("nothing was made")


def test_what_is_wanted_is_ordered_at_once_and_once():
    """An order that is given twice makes two actors of one name."""
    supervisor, names = supervised(count=3)
    assert names == ["reader-1.1", "reader-1.2", "reader-1.3"]
    assert supervisor.orders(0.0) == [] and supervisor.orders(1000.0) == []


def test_who_dies_again_and_again_comes_back_later_and_later():
    """A constructor that is killed was seen to run 16 times in 20 seconds."""
    supervisor, [name, other] = supervised(count=2, max_failures=100)
    now, delays = 0.0, []
    for _ in range(10):
        supervisor.ended(name, "failure", "killed", now)
        then, make = next_after(supervisor, now)
        delays.append(then - now)
        now, name = then, make.name
        supervisor.started(name, "node", now)
    assert delays[0] <= 1.1 and 25 <= delays[-1] <= 60.2
    assert all(delays[k] >= 0.45 * min(2**k, 60) for k in range(10))
    assert other == "reader-1.2" and not supervisor.gave_up


def test_who_was_healthy_for_a_minute_starts_afresh():
    """A reader that dies once a day would be gone for a minute every time."""
    supervisor, [name] = supervised()
    now = 0.0
    for _ in range(10):
        now += 61.0
        supervisor.ended(name, "failure", "killed", now)
        then, make = next_after(supervisor, now)
        assert then - now <= 1.1
        now, name = then, make.name
        supervisor.started(name, "node", now)


def test_what_dies_together_does_not_come_back_together():
    """A thousand readers that open the same bucket in the same moment are refused by it."""
    supervisor, names = supervised(count=50)
    for name in names:
        supervisor.ended(name, "node", "its node died", 10.0)
    owed = supervisor.owed("reader", 10.0)
    assert len(owed) == 50 and max(owed) - min(owed) > 0.3
    assert not supervisor.is_slow("reader", 10.0)  # one node is one incident


def test_a_preemption_is_no_failure_and_costs_no_time():
    """Spot machines are taken back all day; that is what they are cheap for."""
    supervisor, [name] = supervised(max_failures=3, max_in_a_row=3)
    for k in range(10):
        supervisor.started(name, f"node {k}", 2.0 * k)
        supervisor.ended(name, "preemption", "taken back", 2.0 * k)
        [make] = supervisor.orders(2.0 * k)
        name = make.name
    assert not supervisor.gave_up and supervisor.restarts["reader", "preemption"] == 10


def test_who_is_let_go_is_not_replaced():
    """The scaler's decision would be undone by the supervisor."""
    supervisor, names = supervised(count=3)
    supervisor.want("reader", 2)
    supervisor.leaving(names[2])
    assert supervisor.orders(1.0) == []
    supervisor.ended(names[2], "let go", "scaled down", 2.0)
    supervisor.ended(names[2], "let go", "scaled down", 2.0)
    assert supervisor.orders(100.0) == []
    assert supervisor.restarts["reader", "let go"] == 1


def test_a_node_on_which_actors_die_is_avoided_for_a_while():
    """One machine with a broken memory module would eat every replacement."""
    supervisor, names = supervised(count=4, node_seconds=600)
    for k, name in enumerate(names[:3]):
        supervisor.ended(name, "failure", "killed", float(k))
    _, make = next_after(supervisor, 3.0)
    assert make.avoid == {"node"}
    assert supervisor.avoided(["node", "other"], 100.0) == {"node"}
    assert supervisor.avoided(["node"], 100.0) == set()  # there is no other one
    assert supervisor.avoided(["node", "other"], 700.0) == set()


def test_deaths_over_one_shard_are_put_down_to_the_shard():
    """A poison image that goes from node to node would condemn the whole cluster."""
    supervisor, names = supervised(count=10, node_failures=3, max_failures=5, shard_failures=8)
    for k, name in enumerate(names[:7]):
        supervisor.ended(name, "failure", "killed", float(k), shard="s3://b/7.tar")
    assert supervisor.avoided(["node", "other"], 7.0) == set()
    assert supervisor.suspects(7.0) == {"s3://b/7.tar": 7}
    assert not supervisor.gave_up and not supervisor.is_slow("reader", 7.0)
    supervisor.ended(names[7], "failure", "killed", 8.0, shard="s3://b/7.tar")
    assert "8 actors died while they cropped s3://b/7.tar" in supervisor.gave_up
    assert supervisor.orders(9.0) == []


def test_if_all_die_before_they_did_anything_the_run_ends_with_the_reason():
    """A broken image would be started for ever."""
    supervisor = Supervisor(1)
    supervisor.want("reader", 2)
    now = 0.0
    while not supervisor.gave_up:
        now, make = next_after(supervisor, now)
        supervisor.ended(make.name, "failure", "no module named cv2", now)
    assert "4 readers died before they did anything (no module named cv2)" in supervisor.gave_up
    assert now < 30


def test_if_the_last_one_dies_again_and_again_the_run_ends():
    """Every restart costs a minute by then, and nothing comes of it."""
    supervisor, [name] = supervised("trainer", 1)
    now = 0.0
    while not supervisor.gave_up:
        supervisor.ended(name, "failure", "out of memory", now)
        if not supervisor.gave_up:
            now, make = next_after(supervisor, now)
            name = make.name
            supervisor.started(name, "node", now)
    assert "trainers died again and again" in supervisor.gave_up
    assert "out of memory" in supervisor.gave_up and 30 < now < 300


def test_with_others_alive_a_storm_of_deaths_only_slows_replacements_down():
    """The run goes on with those that live, instead of ending, or of a restart loop."""
    supervisor, [name, *_] = supervised(count=3, max_failures=5, first_seconds=0.01)
    made = 0
    for k in range(600):
        now = k * 0.5
        for make in supervisor.orders(now):
            made += 1
            supervisor.started(make.name, f"node {made}", now)
            name = make.name
        supervisor.ended(name, "failure", "killed", now)
    assert made <= 20 and not supervisor.gave_up


def test_if_no_actor_ever_answers_the_wait_ends():
    """A cluster without a free core looks like one that is slow, for ever."""
    supervisor = Supervisor(1, SupervisorConfig(start_seconds=900))
    supervisor.want("trainer", 1)
    supervisor.orders(0.0)
    supervisor.orders(899.0)
    assert not supervisor.gave_up
    supervisor.orders(901.0)
    assert "no trainer started in 900 s" in supervisor.gave_up


def test_actors_of_the_control_before_are_kept():
    """A new Control that made everything anew would be a restart of the run."""
    supervisor = Supervisor(2)
    supervisor.want("reader", 2)
    supervisor.adopt("reader", "reader-1.7", 0.0)
    supervisor.started("reader-1.7", "node", 0.0)
    [make] = supervisor.orders(0.0)
    assert make.name == "reader-2.1"


@pytest.mark.parametrize("seed", range(30))
def test_in_any_order_of_deaths_there_are_never_too_many_nor_too_few_for_long(seed):
    """Counts that drift cost machines, or leave trainers waiting."""
    chance = random.Random(seed)
    supervisor = Supervisor(1, SupervisorConfig(max_failures=10**6, max_in_a_row=10**6), seed)
    alive, now, wanted = {}, 0.0, 4
    supervisor.want("reader", wanted)
    for _ in range(800):
        now += chance.uniform(0, 1)
        for make in supervisor.orders(now, ["a", "b"]):
            assert make.name not in alive and not {"a", "b"} <= make.avoid
            alive[make.name] = False
        assert len(alive) <= wanted
        name = chance.choice([*alive, ""])
        what = chance.random()
        if name and what < 0.3:
            supervisor.started(name, chance.choice("ab"), now)
            alive[name] = True
        elif name and what < 0.4:
            del alive[name]
            cause = chance.choice(["failure", "node", "preemption"])
            supervisor.ended(name, cause, "why", now)
            supervisor.ended(name, cause, "why", now)
        elif what < 0.42:
            wanted = chance.randint(max(len(alive), 1), 8)
            supervisor.want("reader", wanted)
    for _ in range(200):
        now += 1.0
        for make in supervisor.orders(now):
            alive[make.name] = False
        for name in alive:
            supervisor.started(name, "a", now)
    assert len(alive) == wanted or supervisor.gave_up
