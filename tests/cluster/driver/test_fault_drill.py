"""Fault drills without a cluster: the choice of the target, and the observations."""

from dataclasses import replace

import pytest

from cluster.driver.fault_drill import DrillObserver, DrillReport, DrillTarget
from cluster.driver.fault_injection import choose_target
from cluster.protocol.lease_counters import LeaseSnapshot
from cluster.protocol.run_status import ActorStatus, NodeStatus, Status, TimedEvent
from shards.errors import ConfigError


def actor(name: str, node: str, pid: int = 7) -> ActorStatus:
    return ActorStatus(name=name, role=name.partition("-")[0], node=node, pid=pid, phase="works")


def node(name: str, *, is_head: bool = False) -> NodeStatus:
    return NodeStatus(
        node=name,
        address="10.0.0.1",
        labels={},
        num_readers=0,
        num_trainers=0,
        cores=1,
        leaves_in=None,
        is_head=is_head,
    )


LEASES = LeaseSnapshot(
    num_readers=2,
    num_waiting=0,
    num_running=2,
    num_held=3,
    held_bytes=9,
    deadline=15.0,
    oldest=(),
)
STATUS = Status(
    term=1,
    seconds=60.0,
    step=100,
    num_steps=1000,
    planned=110,
    generation="1",
    world=1,
    step_seconds=0.1,
    wanted={"reader": 3, "trainer": 1},
    scaling="3 readers: enough",
    rates={},
    nodes=(node("head", is_head=True), node("a"), node("b")),
    actors=(actor("reader-1", "a", 11), actor("reader-2", "b"), actor("reader-3", "b"),
            actor("trainer-1", "head", 14)),
    leases=LEASES,
    decisions=(TimedEvent(seconds=50.0, what="3 readers", why="enough"),),
    recoveries=(),
    readings={("leases_reissued", "died"): 2.0, ("leases_reissued", "hung"): 1.0},
)  # fmt: skip


def test_the_target_is_the_named_one_or_the_first_that_fits() -> None:
    """A drill of readers would hit the trainer."""
    assert choose_target(STATUS, "kill-reader") == DrillTarget(
        names=("reader-1",), node="a", pid=11
    )
    assert choose_target(STATUS, "kill-reader", "reader-2").names == ("reader-2",)
    assert choose_target(STATUS, "kill-trainer").pid == 14
    assert choose_target(STATUS, "hang", "trainer-1").pid == 14
    busiest = choose_target(STATUS, "kill-node")
    assert busiest == DrillTarget(names=("reader-2", "reader-3"), node="b")
    assert choose_target(STATUS, "kill-node", "a").names == ("reader-1",)


def test_an_impossible_target_is_refused_with_the_possible_ones() -> None:
    """The loss of the head would end the run."""
    with pytest.raises(ConfigError, match="no reader 'reader-9' in this run; there are: reader-1,"):
        choose_target(STATUS, "kill-reader", "reader-9")
    with pytest.raises(ConfigError, match=r"no node 'head' that can be spared; .* on: a, b"):
        choose_target(STATUS, "kill-node", "head")
    alone = replace(STATUS, actors=(actor("reader-1", "head"),))
    with pytest.raises(ConfigError, match="besides the head, actors are on: none"):
        choose_target(alone, "kill-node")


def observed(observer: DrillObserver, status: Status, now: float) -> list[str]:
    return list(observer.observe(status, now))


def test_notice_recovery_and_next_step_are_reported() -> None:
    """A step that was finished before the notice would prove a recovery."""
    observer = DrillObserver(STATUS, choose_target(STATUS, "kill-reader"))
    assert observed(observer, replace(STATUS, step=101), 0.5) == []
    lost = TimedEvent(seconds=0.5, what="reader-1 is lost", why="it died")
    hurt = replace(STATUS, step=102, actors=STATUS.actors[1:], decisions=(*STATUS.decisions, lost))
    assert observed(observer, hurt, 1.0) == [
        "   0.5 s  reader-1 is lost (it died)",
        "   1.0 s  noticed",
    ]
    assert observed(observer, replace(hurt, step=103), 1.5) == ["   1.5 s  step 103 is finished"]
    assert not observer.is_done
    again = {**STATUS.readings, ("leases_reissued", "died"): 6.0}
    whole = replace(hurt, step=109, actors=(*hurt.actors, actor("reader-4", "a")), readings=again)
    assert observed(observer, whole, 4.0) == ["   4.0 s  as many as before"]
    assert observer.is_done
    report = observer.report(whole)
    assert isinstance(report, DrillReport)
    assert (report.noticed, report.continued, report.recovered) == (1.0, 1.5, 4.0)
    assert (report.first_step, report.last_step) == (100, 109)
    assert report.counts["leases_reissued"] == 4 and report.counts["readers_lost"] == 0


def test_steps_that_were_lost_with_the_only_trainer_are_reported() -> None:
    """The report would say that no step was lost."""
    observer = DrillObserver(STATUS, choose_target(STATUS, "kill-trainer"))
    observed(observer, replace(STATUS, step=104), 0.1)
    without = tuple(one for one in STATUS.actors if one.role != "trainer")
    observed(observer, replace(STATUS, step=90, world=0, actors=without), 0.5)
    again = (*without, actor("trainer-2", "a"))
    assert (
        "step 91 is finished" in observed(observer, replace(STATUS, step=91, actors=again), 9.0)[0]
    )
    assert observer.report(STATUS).back_from == 104


def test_an_unnoticed_fault_has_no_recovery() -> None:
    """A reader that hung for a second would count as recovered."""
    observer = DrillObserver(STATUS, choose_target(STATUS, "hang"))
    assert observed(observer, replace(STATUS, step=200), 20.0) == []
    report = observer.report(STATUS)
    assert (report.noticed, report.continued, report.recovered) == (None, None, None)


def test_fewer_actors_are_enough_if_fewer_are_wanted() -> None:
    """A drill would never end after the autoscaler removed a reader."""
    observer = DrillObserver(STATUS, choose_target(STATUS, "kill-reader"))
    fewer = replace(STATUS, step=101, actors=STATUS.actors[1:], wanted={"reader": 2, "trainer": 1})
    assert observed(observer, fewer, 1.0)[-1] == "   1.0 s  as many as before"
