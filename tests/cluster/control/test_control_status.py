"""Reports of Control: counters of all processes, gauges of what was measured, and the status."""

import json

from cluster.control.control_core import ControlCore
from cluster.control.control_status import make_report
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer, process_targets
from cluster.monitoring.run_state import RunOutcome
from cluster.protocol.driver_protocol import ActorEvent
from cluster.protocol.messages import HeartbeatMessage, ReaderReport, Role, TrainerUsage
from streamssl.monitoring.catalogue import CATALOGUE
from tests.cluster.monitoring.counted import fetch
from tests.cluster.monitoring.made_core import made_core, node


def start(
    core: ControlCore, number: int, name: str, role: Role, node: str, pages: str = ""
) -> None:
    event = ActorEvent(number=number, name=name, role=role, kind="started", node=node, pages=pages)
    core.take_event(event, 0.0)


def lose(core: ControlCore, number: int, name: str) -> None:
    event = ActorEvent(number=number, name=name, role="reader", kind="lost", node="a")
    core.take_event(event, 1.0)


def heartbeat(name: str, ready: int, memory: int) -> HeartbeatMessage:
    usage = TrainerUsage(
        memory_bytes=memory, held_bytes=10, limit_bytes=50, batches_ready=ready,
        device_bytes={"allocated": memory * 2},
    )  # fmt: skip
    return HeartbeatMessage(
        member=name, term=1, phase="ready", generation=0, committed=0, usage=usage
    )


def test_a_gauge_that_was_not_measured_is_absent() -> None:
    """A 0 would be taken for a measurement: a run without memory, lease or lead."""
    with made_core() as core:
        report = make_report(core)
    names = {key[0] for key in report.gauges}
    assert names <= CATALOGUE.keys()
    assert not names & {"lead_seconds", "oldest_lease_seconds", "device_memory_bytes"}
    assert ("memory_bytes", "reader") not in report.gauges
    assert report.gauges["actors_wanted", "reader"] == 2 and report.gauges["actors", "reader"] == 0
    assert report.gauges["world_size",] == 0
    assert report.status.term == report.gauges["control_term",]


def test_trainers_are_summed_up_by_their_worst() -> None:
    """The trainer with the shortest lead stalls first; the fullest one runs out of memory."""
    with made_core() as core:
        core.beat(heartbeat("t1", 3, 100))
        core.beat(heartbeat("t2", 1, 70))
        found = make_report(core).gauges
    assert found["batches_ready", "taken"] == 1 and found["memory_bytes", "trainer"] == 100
    assert found["buffer_bytes", "trainer"] == 20 and found["buffer_limit_bytes", "trainer"] == 100
    assert found["device_memory_bytes", "allocated"] == 200


def test_pools_and_nodes_are_those_of_the_cluster() -> None:
    """The user must see whether the nodes that cost money work for the run."""
    alive = (
        node("a", "readers"),
        node("b", "spare", free=0.1, leaves_at=1.0),
        node("c", "trainers"),
    )
    with made_core(*alive) as core:
        start(core, 1, "reader-1", "reader", "a")
        start(core, 2, "reader-2", "reader", "b")
        start(core, 3, "trainer-1", "trainer", "c")
        found = make_report(core).gauges
    assert found["nodes", "staying"] == 2 and found["nodes", "leaving"] == 1
    assert found["pool_ready", "reader", "pool=readers"] == 1
    assert found["pool_ready", "reader", "pool=spare"] == 1
    assert found["pool_desired", "reader", "pool=readers"] == 1  # two are wanted, one is elsewhere
    assert found["pool_desired", "trainer", "pool=trainers"] == 2
    assert round(found["object_store_used_ratio",], 3) == 0.9


def test_counts_of_a_reader_are_sent_once() -> None:
    """For two hundred silent readers there is nothing to send."""
    with made_core() as core:
        counts = {("samples", "read"): 4.0}
        report = ReaderReport(reader="r1", term=1, counts=counts, memory_bytes=7, held_bytes=5)
        core.exchange(report)
        first, second = make_report(core), make_report(core)
    assert [one.source for one in first.counted] == [f"control {core.term}", "r1"]
    assert first.counted[1].counts == counts
    assert [one.source for one in second.counted] == [f"control {core.term}"]
    assert second.gauges["memory_bytes", "reader"] == 7
    assert second.gauges["buffer_bytes", "reader"] == 5


def test_losses_and_leases_are_counters_of_this_control() -> None:
    """A counter that no report carries is counted in vain."""
    with made_core(node("a", "readers")) as core:
        start(core, 1, "reader-1", "reader", "a")
        lose(core, 2, "reader-1")
        leases = core.table.counters
        leases.hedged, leases.hedges_won, leases.recropped = 5, 4, 3
        leases.given_up, leases.differing = 2, 1
        found = make_report(core).counted[0].counts
    assert found["readers_lost",] == 1 and found["restarts", "reader", "failure"] == 1
    assert {key[0] for key in found} <= CATALOGUE.keys()
    names = ["leases_hedged", "hedges_won", "chunks_recropped", "chunks_given_up"]
    names += ["results_differing"]
    assert [found[name,] for name in names] == [5, 4, 3, 2, 1]


def test_gauges_that_control_no_longer_reports_disappear() -> None:
    """A pool that was given back would be shown for ever; gauges of the driver stay."""
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


def test_processes_with_pages_are_scrape_targets_while_they_live() -> None:
    """A Prometheus that still scrapes a dead process reports `up == 0` for ever."""
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
        lose(core, 5, "reader-1")
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
