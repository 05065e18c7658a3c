"""Actor registry: wanted actors exist, dead ones are replaced, superfluous ones end."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.actors.actor_registry import ActorRegistry
from cluster.actors.restart_policy import RestartConfig
from cluster.protocol.driver_protocol import ActorEvent, CreateActor


@dataclass
class Driver:
    """Executes the requests of a registry at once, and reports events like the real driver."""

    registry: ActorRegistry
    now: float = 0.0
    number: int = 0
    created: dict[str, CreateActor] = field(default_factory=dict)

    def report(self, name: str, kind: Any, node: str = "n1", **more: Any) -> None:
        self.number += 1
        role = self.created[name].role
        event = ActorEvent(number=self.number, name=name, role=role, kind=kind, node=node, **more)
        self.registry.apply(event, self.now)

    def tick(self, seconds: float = 0.0, nodes: Any = ("n1",), start: bool = True) -> list[str]:
        """Let time pass; return the names of new requests, which start at once."""
        self.now += seconds
        find = (lambda role, _: nodes[role]) if isinstance(nodes, dict) else (lambda *_: nodes)
        self.registry.tick(self.now, find)
        new = [one for one in self.registry.requests()[0] if one.name not in self.created]
        for request in new:
            self.created[request.name] = request
            if start:
                self.report(request.name, "started")
        return [request.name for request in new]

    def present(self, role: str) -> list[str]:
        return sorted(name for name, one in self.registry.started.items() if one.role == role)


def make_driver(readers: int = 2, trainers: int = 1, **config: Any) -> Driver:
    return Driver(
        ActorRegistry(1, {"reader": readers, "trainer": trainers}, RestartConfig(**config))
    )


def test_wanted_actors_are_requested_once_and_dead_ones_replaced() -> None:
    """A lost reader would make the run slower for ever; a second request would double it."""
    driver = make_driver()
    assert driver.tick() == ["reader-1.1", "reader-1.2", "trainer-1.3"]
    assert driver.tick(1000.0) == []
    driver.report("reader-1.1", "lost", reason="killed")
    driver.report("reader-1.1", "lost", reason="killed")
    assert driver.tick(2.0) == ["reader-1.4"]
    assert driver.present("reader") == ["reader-1.2", "reader-1.4"]
    assert driver.registry.counters()["readers_lost",] == 1
    assert driver.registry.counters()["restarts", "reader", "failure"] == 1


def test_a_request_is_repeated_until_its_outcome_is_known() -> None:
    """The answer with the request may be lost together with Control."""
    driver = make_driver()
    driver.tick(1.0, start=False)
    requests, _ = driver.registry.requests()
    driver.registry.tick(2.0, lambda *_: ())
    assert len(requests) == 3 and driver.registry.requests()[0] == requests


def test_an_actor_that_was_given_up_is_killed_until_it_is_dead_and_replaced_meanwhile() -> None:
    """A process that hangs holds its core, and does not end by itself."""
    driver = make_driver()
    driver.tick()
    driver.registry.give_up("reader-1.1", "s3://a/1.tar", driver.now)
    for _ in range(3):
        driver.tick(2.0)
        assert [one.name for one in driver.registry.requests()[1]] == ["reader-1.1"]
    assert len(driver.present("reader")) == 3  # with the one that is not dead yet
    driver.report("reader-1.1", "lost")
    assert driver.registry.requests()[1] == () and len(driver.present("reader")) == 2


def test_a_drained_trainer_is_replaced_and_one_that_finished_ends_the_run() -> None:
    """A preempted trainer needs a successor; after the last step no actor is needed."""
    driver = make_driver(trainers=2)
    driver.tick()
    first, second = driver.present("trainer")
    driver.registry.drain(first)
    assert driver.registry.draining == {first}
    assert len(driver.tick(1.0)) == 1
    driver.report(first, "left")
    assert driver.tick(1.0) == [] and driver.registry.counters()["trainers_lost",] == 0
    driver.report(second, "left")
    assert driver.tick(60.0) == []
    assert driver.registry.is_closed and driver.registry.requests() == ((), ())


def test_superfluous_readers_are_not_replaced() -> None:
    """The decision of the autoscaler would be undone."""
    driver = make_driver(readers=2)
    driver.tick()
    driver.registry.want("reader", 3)
    [unborn] = driver.tick(start=False)
    assert driver.registry.starting("reader") == (unborn,)
    driver.registry.want("reader", 1)
    for name in (unborn, "reader-1.2"):
        driver.registry.drain(name)
    assert driver.registry.requests() == ((), (driver.created[unborn],))
    driver.report(unborn, "lost")
    driver.report("reader-1.2", "lost", reason="killed")
    assert driver.tick(100.0) == [] and driver.present("reader") == ["reader-1.1"]
    assert driver.registry.counters()["readers_lost",] == 0
    assert driver.registry.ready("reader") == {"reader-1.1": "n1"}


def test_actors_that_died_together_do_not_start_together() -> None:
    """A thousand readers that open a bucket at the same moment are refused by it."""
    driver = make_driver(readers=50)
    driver.tick()
    for name in driver.present("reader"):
        driver.report(name, "lost", reason="its node died", with_node=True)
    delays = driver.registry.delays("reader", driver.now)
    assert len(delays) == 50 and max(delays) - min(delays) > 0.3


def test_a_storm_of_deaths_slows_replacements_down() -> None:
    """The run continues with the actors that live, without a restart loop."""
    driver = make_driver(readers=3, trainers=0, max_failures=5, first_seconds=0.01)
    driver.tick()
    for _ in range(600):
        newest = max(driver.created, key=lambda name: int(name.partition(".")[2]))
        driver.report(newest, "lost", reason="killed", node="n")
        driver.tick(0.5)
    assert len(driver.created) <= 23 and not driver.registry.policy.gave_up


def test_the_only_node_of_a_pool_is_not_avoided() -> None:
    """Readers have another node; the trainer has none, and would never be created again."""
    driver = make_driver()
    nodes = {"reader": ("n1", "n2"), "trainer": ("n1",)}
    driver.tick(nodes=nodes)
    for _ in range(6):
        for name in driver.present("trainer"):
            driver.report(name, "lost", reason="killed")
        for _ in range(40):
            driver.tick(2.0, nodes)
    trainers = [one for one in driver.created.values() if one.role == "trainer"]
    assert len(trainers) == 7 and all(one.avoid == () for one in trainers)
    driver.report(driver.present("reader")[0], "lost", reason="killed")
    [name] = driver.tick(2.0, nodes)
    assert driver.created[name].role == "reader" and driver.created[name].avoid == ("n1",)


def test_a_new_control_adopts_the_actors_of_the_old_one() -> None:
    """Each dead Control would double the actors, and hold nodes for them."""
    driver = make_driver()
    names = {"reader-0.1": "started", "reader-0.2": "created", "trainer-0.3": "started"}
    for name, kind in names.items():
        role: Any = name.partition("-")[0]
        driver.created[name] = CreateActor(name, role)
        driver.report(name, kind)
    assert driver.tick(1.0) == []
    create, kill = driver.registry.requests()
    assert [one.name for one in create] == ["reader-0.2"] and not kill
    driver.report("reader-0.2", "started")
    assert driver.tick(1.0) == [] and driver.present("reader") == ["reader-0.1", "reader-0.2"]


@pytest.mark.parametrize("seed", range(10))
def test_no_order_of_deaths_leaves_too_many_or_too_few_actors(seed: int) -> None:
    """Counts that drift cost machines, or leave trainers waiting."""
    chance = random.Random(seed)
    driver = make_driver(readers=4, trainers=0, max_failures=10**6, max_in_a_row=10**6)
    alive: set[str] = set()
    wanted = 4
    for _ in range(800):
        new = driver.tick(chance.uniform(0, 1), ["a", "b"], start=False)
        assert not alive & set(new)
        assert all(not {"a", "b"} <= set(driver.created[name].avoid) for name in new)
        alive |= set(new)
        assert len(alive) <= wanted
        name, what = chance.choice([*sorted(alive), ""]), chance.random()
        if name and what < 0.3:
            driver.report(name, "started", node=chance.choice("ab"))
        elif name and what < 0.4:
            alive.remove(name)
            cause = chance.choice([{}, {"with_node": True}, {"preempted": True}])
            for _ in range(2):
                driver.report(name, "lost", node="a", **cause)
        elif what < 0.42:
            wanted = chance.randint(max(len(alive), 1), 8)
            driver.registry.want("reader", wanted)
    for _ in range(200):
        alive |= set(driver.tick(1.0, start=False))
        for name in alive:
            driver.report(name, "started", node="a")
    assert len(alive) == wanted or driver.registry.policy.gave_up
