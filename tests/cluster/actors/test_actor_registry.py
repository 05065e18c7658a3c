"""Staff: how many actors, which go and which come anew: two policies together, no cluster."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cluster.actors.actor_registry import Seen, Staff
from cluster.actors.autoscaler import ScalingConfig
from cluster.actors.reader_totals import Tally
from cluster.actors.restart_policy import SupervisorConfig
from cluster.protocol.driver_protocol import ActorEvent, MakeOrder
from cluster.protocol.messages import Beat, ChunkHeader, Finished, ReaderReport
from cluster.protocol.metric import Counted
from shards.records import Chunk

SCALING = ScalingConfig(least=2, most=8, cool_down_seconds=10.0)


@dataclass
class Driver:
    """Does at once what the staff wants, and tells of it, as the real one does."""

    staff: Staff
    now: float = 0.0
    number: int = 0
    made: dict[str, MakeOrder] = field(default_factory=dict)

    def tell(self, name: str, kind: Any, **more: Any) -> bool:
        self.number += 1
        role = self.made[name].role
        event = ActorEvent(
            number=self.number, name=name, role=role, kind=kind, node="n1", pid=7, **more
        )
        return self.staff.take(event, self.now)

    def round(self, seconds: float = 1.0, nodes: tuple[str, ...] = ("n1",)) -> None:
        self.now += seconds
        self.staff.tick(self.now, lambda *_: nodes)
        make, _ = self.staff.wanted()
        for order in make:
            assert order.name not in self.made, "an order is for one actor, once"
            self.made[order.name] = order
            self.tell(order.name, "started")

    def there(self, role: str) -> list[str]:
        return sorted(name for name, one in self.staff.there.items() if one.role == role)


def make_driver(scaling: ScalingConfig = SCALING, trainers: int = 1) -> Driver:
    pools = {"reader": 1, "trainer": 1}
    return Driver(Staff(1, scaling, trainers, pools, SupervisorConfig()))  # type: ignore[arg-type]


def test_what_is_wanted_is_made_and_what_dies_is_made_again() -> None:
    """A lost reader would make the run slower for ever."""
    driver = make_driver()
    driver.round()
    assert len(driver.there("reader")) == 2 and len(driver.there("trainer")) == 1
    first = driver.there("reader")[0]
    assert driver.tell(first, "lost", reason="killed")
    assert first not in driver.there("reader")
    for _ in range(5):
        driver.round()
    assert len(driver.there("reader")) == 2 and first not in driver.there("reader")
    assert driver.staff.counters()["readers_lost",] == 1


def test_an_order_stands_until_it_is_heard_of() -> None:
    """The answer that gives an order may be lost with whoever was to carry it out."""
    staff = make_driver().staff
    staff.tick(1.0, lambda *_: ())
    orders, _ = staff.wanted()
    assert len(orders) == 3
    staff.tick(2.0, lambda *_: ())
    assert staff.wanted()[0] == orders


def test_who_is_given_up_is_killed_until_it_is_dead_and_replaced_meanwhile() -> None:
    """A process that hangs holds its core, and does not end by itself."""
    driver = make_driver()
    driver.round()
    hangs = driver.there("reader")[0]
    driver.staff.give_up(hangs, "s3://a/1.tar", driver.now)
    assert [order.name for order in driver.staff.wanted()[1]] == [hangs]
    for _ in range(5):
        driver.round()
    assert [order.name for order in driver.staff.wanted()[1]] == [hangs]
    assert len(driver.there("reader")) == 3  # with the one that is not dead yet
    driver.tell(hangs, "lost")
    assert driver.staff.wanted()[1] == () and len(driver.there("reader")) == 2


def test_a_trainer_that_has_to_go_is_replaced_and_one_that_is_done_ends_the_run() -> None:
    """Of the first another one must take the place; after the second nobody is needed."""
    driver = make_driver(trainers=2)
    driver.round()
    goes = driver.there("trainer")[0]
    driver.staff.leave(goes)
    driver.round()
    assert len(driver.there("trainer")) == 3
    driver.tell(goes, "left")
    driver.round()
    assert len(driver.there("trainer")) == 2
    driver.tell(driver.there("trainer")[0], "left")
    driver.round(60.0)
    assert driver.staff.wanted() == ((), ()) and len(driver.there("trainer")) == 1


def beat(step_seconds: float, wait_seconds: float, committed: int) -> Beat:
    return Beat(
        member="trainer-1.1",
        term=1,
        phase="running",
        generation=1,
        committed=committed,
        step_seconds=step_seconds,
        wait_seconds=wait_seconds,
    )


def test_starving_trainers_get_more_readers_up_to_the_most() -> None:
    """Rates decide: here trainers eat 80 images a second, and a reader makes 10 of them."""
    driver, tally = make_driver(), Tally()
    work = 0.0
    for tick in range(40):
        driver.round(3.0)
        readers = len(driver.there("reader"))
        made = min(10.0 * readers, 80.0) * 3.0
        tally.num_made += int(made)
        tally.busy_seconds += made / 10.0
        work += made / 80.0
        beats = [beat(work, 3.0 * tick - work, int(tally.num_made / 10))]
        seen = Seen(committed=int(tally.num_made / 10), batch_size=10, num_failed=0)
        driver.staff.scale(driver.now, tally, beats, seen)
    assert len(driver.there("reader")) == 8
    whats = [what for _, what, why in driver.staff.events if why == "starved"]
    assert whats[-1] == "8 readers wanted"


def report(reader: str, *tasks: int, busy: float = 0.0) -> ReaderReport:
    header = ChunkHeader(
        chunk=Chunk(0, 0, 10),
        epoch=0,
        offsets=np.arange(4),
        kept=np.array([True, True, False, True]),
        rejects=(),
        num_bytes=3,
        read_seconds=0.5,
        crop_seconds=1.0,
        num_unselected=2,
    )
    finished = tuple(Finished(task, 1, header) for task in tasks)
    return ReaderReport(
        reader=reader,
        term=1,
        finished=finished,
        busy_seconds=busy,
        counts={("crop_bytes",): 3 * len(tasks)},
    )


def test_a_report_that_comes_twice_counts_once() -> None:
    """Answers are lost and asked for again; images must not double by that."""
    tally = Tally()
    for told in (report("a", 1), report("a", 1), report("a", 1, 2, busy=2.0)):
        tally.add(told)
    assert tally.num_made == 6
    assert tally.busy_seconds == 2.0
    assert tally.take_news() == (Counted("a", {("crop_bytes",): 6}),)
    assert tally.take_news() == ()


def test_totals_outlive_the_readers() -> None:
    """A counter that falls is taken for a restart by Prometheus."""
    tally = Tally()
    tally.add(report("a", 1, busy=2.0))
    tally.forget("a")
    tally.add(replace(report("b", 2, busy=1.0)))
    assert tally.busy_seconds == 3.0 and tally.num_made == 6


def test_the_only_node_of_a_pool_is_not_avoided() -> None:
    """Readers have another node; the trainer has none, and would never be made again."""
    driver = make_driver()
    nodes = {"reader": ("n1", "n2"), "trainer": ("n1",)}
    driver.round()
    for _ in range(6):
        for name in driver.there("trainer"):
            driver.tell(name, "lost", reason="killed")
        for _ in range(40):
            driver.now += 2.0
            driver.staff.tick(driver.now, lambda role, _: nodes[role])
            orders, _ = driver.staff.wanted()
            for order in orders:
                driver.made[order.name] = order
                driver.tell(order.name, "started")
    trainers = [order for order in driver.made.values() if order.role == "trainer"]
    assert len(trainers) == 7
    assert all(order.avoid == () for order in trainers)
    first = driver.there("reader")[0]
    driver.tell(first, "lost", reason="killed")
    driver.now += 2.0
    driver.staff.tick(driver.now, lambda role, _: nodes[role])
    [order] = driver.staff.wanted()[0]
    assert order.role == "reader" and order.avoid == ("n1",)


def test_a_new_control_orders_nothing_that_the_one_before_had_ordered() -> None:
    """Or every Control that died would double the actors, and hold nodes for them."""
    driver = make_driver()
    driver.made = {
        "reader-0.1": MakeOrder("reader-0.1", "reader"),
        "reader-0.2": MakeOrder("reader-0.2", "reader"),
        "trainer-0.3": MakeOrder("trainer-0.3", "trainer"),
    }
    driver.tell("reader-0.1", "started")
    driver.tell("reader-0.2", "made")
    driver.tell("trainer-0.3", "started")
    driver.staff.tick(1.0, lambda *_: ("n1",))
    make, kill = driver.staff.wanted()
    assert [order.name for order in make] == ["reader-0.2"] and not kill
    driver.tell("reader-0.2", "started")
    assert driver.there("reader") == ["reader-0.1", "reader-0.2"]
    driver.round()
    assert len(driver.made) == 3
