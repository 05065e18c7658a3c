"""Restart policy: delays, nodes to avoid, and the point at which the run must end."""

import pytest

from cluster.actors.restart_policy import (
    Death,
    RestartConfig,
    RestartPolicy,
    count_failures,
    restart_delay,
)

CONFIG = RestartConfig()


def death(at=0.0, cause="failure", role="reader", **fields):
    return Death(
        at=at, name="a", role=role, cause=cause, **{"reason": "killed", "lived": 1.0, **fields}
    )


def recorded(*deaths, alive=5, wanted=5, **config):
    policy = RestartPolicy(RestartConfig(**config))
    for each in deaths:
        policy.record_death(each, wanted, alive)
    return policy


def test_the_delay_doubles_with_each_failure_in_a_row_up_to_a_minute():
    """A constructor that is killed was seen to run 16 times in 20 seconds."""
    delays, failures = [], 0
    for _ in range(10):
        died = death(num_failures=failures)
        delays.append(restart_delay(CONFIG, died, 1.0))
        failures = count_failures(CONFIG, died)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert restart_delay(CONFIG, death(num_failures=3), 0.5) == 4


def test_a_healthy_minute_resets_the_delay():
    """A reader that dies once a day would be gone for a minute every time."""
    died = death(num_failures=9, lived=61.0)
    assert count_failures(CONFIG, died) == 1 and restart_delay(CONFIG, died, 1.0) == 1


def test_a_preemption_is_no_failure_and_costs_no_time():
    """Spot machines are preempted all day; that is why they are cheap."""
    died = death(cause="preemption", num_failures=3)
    assert count_failures(CONFIG, died) == 3 and restart_delay(CONFIG, died, 1.0) == 0
    policy = recorded(
        *(death(2.0 * k, "preemption", node=f"n{k}") for k in range(10)),
        alive=0,
        max_failures=3,
        max_in_a_row=3,
    )
    assert not policy.gave_up and policy.restarts["reader", "preemption"] == 10


def test_a_node_that_dies_with_its_actors_is_one_incident():
    """A node of fifty readers would use up the budget of the whole run."""
    policy = recorded(*(death(10.0, "node", node="n") for _ in range(50)), wanted=10)
    assert not policy.is_storm("reader", 10, 10.0)


def test_a_node_on_which_actors_die_is_avoided_for_a_while():
    """One machine with a broken memory module would take every replacement."""
    policy = recorded(*(death(float(k), node="bad") for k in range(3)), node_seconds=600)
    assert policy.avoided(["bad", "other"], 100.0) == {"bad"}
    assert policy.avoided(["bad"], 100.0) == set()  # there is no other node
    assert policy.avoided(["bad", "other"], 700.0) == set()


def test_deaths_over_one_shard_are_attributed_to_the_shard():
    """A poison image that goes from node to node would condemn the whole cluster."""
    deaths = [death(float(k), node="n", shard="s3://b/7.tar") for k in range(8)]
    policy = recorded(*deaths[:7], node_failures=3, max_failures=5, shard_failures=8)
    assert policy.avoided(["n", "other"], 7.0) == set()
    assert policy.suspects(7.0) == {"s3://b/7.tar": 7}
    assert not policy.gave_up and not policy.is_storm("reader", 5, 7.0)
    policy.record_death(deaths[7], 5, 5)
    assert "8 actors died while they cropped s3://b/7.tar" in policy.gave_up


def test_deaths_before_the_first_answer_end_the_run_with_the_reason():
    """A broken container image would be started for ever."""
    deaths = [death(float(k), lived=None, reason="no module named cv2") for k in range(4)]
    assert not recorded(*deaths[:3], alive=0).gave_up
    found = recorded(*deaths, alive=0).gave_up
    assert "4 readers died before they did anything (no module named cv2)" in found


@pytest.mark.parametrize(
    ("deaths", "config"),
    [
        ([death(role="trainer", num_failures=7, reason="out of memory")], {}),
        (
            [death(float(k), role="trainer", reason="out of memory") for k in range(5)],
            {"max_failures": 5},
        ),
    ],
    ids=["in one place", "in all"],
)
def test_repeated_deaths_end_the_run_only_if_no_actor_is_left(deaths, config):
    """Every restart costs a minute by then; with others alive the run continues instead."""
    found = recorded(*deaths, alive=0, wanted=1, **config).gave_up
    assert "trainers died again and again" in found and "out of memory" in found
    assert not recorded(*deaths, alive=1, wanted=1, **config).gave_up


def test_a_role_without_any_answer_ends_the_run():
    """A cluster without a free core looks like a slow one, for ever."""
    policy = recorded(start_seconds=900)
    policy.check_start("trainer", 899.0)
    assert not policy.gave_up
    policy.check_start("trainer", 901.0)
    assert "no trainer started in 900 s" in policy.gave_up
