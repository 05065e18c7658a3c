"""What Control tells of a run: counters of everybody, gauges of what was measured, and no more."""

import json

from cluster.control.control_status import make_report

from cluster.control.control_core import ControlCore
from cluster.monitoring.metric_catalogue import CATALOGUE
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer, process_targets
from cluster.monitoring.run_state import RunOutcome
from cluster.protocol.driver_protocol import ActorEvent
from cluster.protocol.messages import HeartbeatMessage, ReaderReport, Role, TrainerUsage
from tests.cluster.monitoring.counted import fetch
from tests.cluster.monitoring.made_core import made_core, node


def start(core: ControlCore, number: int, name: str, role: Role, place: str, pages: str = "") -> None:
    """An actor answers."""
    core.take_event(ActorEvent(number=number, name=name, role=role, kind="created"), 0.0)
    started = ActorEvent(
        number=number + 1, name=name, role=role, kind="started", node=place, pages=pages
    )
    core.take_event(started, 0.0)


def beat(name: str, ready: int, memory: int) -> HeartbeatMessage:
    load = TrainerUsage(
        memory_bytes=memory, held_bytes=10, limit_bytes=50, batches_ready=ready,
        device_bytes={"allocated": memory * 2},
    )  # fmt: skip
    return HeartbeatMessage(member=name, term=1, phase="ready", generation=0, committed=0, usage=load)


def test_gauges_are_of_what_was_measured_alone() -> None:
    """Of a run in which nobody has come yet there is no memory, no lease and no lead."""
    with made_core() as core:
        told = make_report(core)
    assert {key[0] for key in told.gauges} <= CATALOGUE.keys()
    names = {key[0] for key in told.gauges}
    assert not names & {"lead_seconds", "oldest_lease_seconds", "device_memory_bytes"}
    assert ("memory_bytes", "reader") not in told.gauges
    assert told.gauges["actors_wanted", "reader"] == 2 and told.gauges["world_size",] == 0
    assert told.gauges["actors", "reader"] == 0 and told.status.term == told.gauges["control_term",]


def test_trainers_say_what_they_hold() -> None:
    """The one with the least lead is the one that stalls; the one that is fullest runs out."""
    with made_core() as core:
        core.beat(beat("t1", 3, 100))
        core.beat(beat("t2", 1, 70))
        found = make_report(core).gauges
    assert found["batches_ready", "taken"] == 1 and found["memory_bytes", "trainer"] == 100
    assert found["buffer_bytes", "trainer"] == 20 and found["buffer_limit_bytes", "trainer"] == 100
    assert found["device_memory_bytes", "allocated"] == 200


def test_pools_and_nodes_are_those_of_the_cluster() -> None:
    """Whether the nodes that are paid for work for the run."""
    alive = (
        node("a", "readers"),
        node("b", "spare", free=0.1, leaves_at=1.0),
        node("c", "trainers"),
    )
    with made_core(*alive) as core:
        start(core, 1, "reader-1", "reader", "a")
        start(core, 3, "reader-2", "reader", "b")
        start(core, 5, "trainer-1", "trainer", "c")
        found = make_report(core).gauges
    assert found["nodes", "staying"] == 2 and found["nodes", "leaving"] == 1
    assert found["pool_ready", "reader", "pool=readers"] == 1
    assert found["pool_ready", "reader", "pool=spare"] == 1
    assert found["pool_desired", "reader", "pool=readers"] == 1  # two are wanted, one is elsewhere
    assert found["pool_desired", "trainer", "pool=trainers"] == 2
    assert round(found["object_store_used_ratio",], 3) == 0.9


def test_readers_are_told_of_once_and_only_when_they_spoke() -> None:
    """Of two hundred silent readers there is nothing to send."""
    with made_core() as core:
        counts = {("samples", "read"): 4.0}
        report = ReaderReport(reader="r1", term=1, counts=counts, memory_bytes=7, held_bytes=5)
        core.exchange(report)
        told, again = make_report(core), make_report(core)
    assert [one.source for one in told.counted] == [f"control {core.term}", "r1"]
    assert told.counted[1].counts == counts
    assert [one.source for one in again.counted] == [f"control {core.term}"]
    assert again.gauges["memory_bytes", "reader"] == 7
    assert again.gauges["buffer_bytes", "reader"] == 5


def test_losses_and_decisions_are_counters_of_this_control() -> None:
    """A Control that dies takes its own counts along, and no others."""
    with made_core(node("a", "readers")) as core:
        start(core, 1, "reader-1", "reader", "a")
        lost = ActorEvent(number=3, name="reader-1", role="reader", kind="lost", node="a")
        core.take_event(lost, 1.0)
        found = make_report(core).counted[0].counts
    assert found["readers_lost",] == 1 and found["restarts", "reader", "failure"] == 1
    assert {key[0] for key in found} <= CATALOGUE.keys()


def test_what_control_tells_no_more_goes_and_what_others_say_stays() -> None:
    """A pool that was given back would be shown for ever; the memory of the driver is its own."""
    metrics = MetricsHub(CATALOGUE)
    metrics.values.set({("memory_bytes", "driver"): 5.0})
    with made_core(node("a", "readers")) as core:
        start(core, 1, "reader-1", "reader", "a")
        metrics.take_report(make_report(core))
        assert metrics.values.get(("nodes", "staying")) == 1
        core.nodes.latest = None
        metrics.take_report(make_report(core))
    assert metrics.values.get(("nodes", "staying")) is None
    assert metrics.values.get(("memory_bytes", "driver")) == 5
    assert metrics.values.get(("actors", "reader")) == 1


def test_processes_with_pages_are_targets_until_they_are_gone() -> None:
    """A Prometheus that goes on asking a dead one says `up == 0` for ever."""
    metrics = MetricsHub(CATALOGUE)
    with made_core(node("a", "readers"), node("c", "trainers")) as core:
        core.pages = {"driver": "127.0.0.1:9500", "control": "10.0.0.1:9500"}
        for number, name in enumerate(("reader-1", "reader-2"), 1):
            start(core, number, name, "reader", "a", f"10.0.0.2:950{number}")
        start(core, 3, "trainer-1", "trainer", "c", "10.0.0.3:9500")
        start(core, 4, "trainer-2", "trainer", "gone", "")
        metrics.take_report(make_report(core))
        assert metrics.status is not None
        before = process_targets(metrics.status, {"run": "a"})
        lost = ActorEvent(number=5, name="reader-1", role="reader", kind="lost", node="a")
        core.take_event(lost, 1.0)
        metrics.take_report(make_report(core))
        after = process_targets(metrics.status, {"run": "a"})
    process = {"run": "a", "scope": "process"}
    assert before == [
        {"targets": ["127.0.0.1:9500"], "labels": process | {"role": "driver"}},
        {"targets": ["10.0.0.1:9500"], "labels": process | {"role": "control"}},
        {"targets": ["10.0.0.2:9501", "10.0.0.2:9502"],
         "labels": process | {"role": "reader", "pool": "pool=readers"}},
        {"targets": ["10.0.0.3:9500"],
         "labels": process | {"role": "trainer", "pool": "pool=trainers"}},
    ]  # fmt: skip
    assert after[2]["targets"] == ["10.0.0.2:9502"]
    metrics.outcome = RunOutcome(at=1.0)
    with MetricsServer(metrics) as server:
        assert len(json.loads(fetch(server.url.replace("/metrics", "/sd")))) == 1
