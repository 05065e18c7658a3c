"""Reader scaling: totals of readers and trainers become rates, and rates a number of readers."""

import numpy as np

from cluster.actors.autoscaler import ScalingConfig
from cluster.actors.reader_scaling import ReaderScaling, ScalingInput
from cluster.actors.reader_totals import ReaderTotals
from cluster.protocol.messages import ChunkHeader, FinishedLease, HeartbeatMessage, ReaderReport
from cluster.protocol.process_counts import ProcessCounts
from shards.records import Chunk


def heartbeat(step_seconds: float, wait_seconds: float, committed: int) -> HeartbeatMessage:
    return HeartbeatMessage(
        member="trainer-1.1",
        term=1,
        phase="running",
        generation=1,
        committed=committed,
        step_seconds=step_seconds,
        wait_seconds=wait_seconds,
    )


def test_starving_trainers_get_more_readers_up_to_the_maximum() -> None:
    """Trainers consume 80 images a second here, and a reader makes 10."""
    scaling = ReaderScaling(ScalingConfig(min_readers=2, max_readers=8), 1)
    totals, readers, work = ReaderTotals(), 2, 0.0
    for tick in range(40):
        made = min(10.0 * readers, 80.0) * 3.0
        totals.num_made += int(made)
        totals.busy_seconds += made / 10.0
        work += made / 80.0
        committed = int(totals.num_made / 10)
        decision = scaling.decide(
            ScalingInput(
                now=3.0 * tick,
                totals=totals,
                beats=[heartbeat(work, 3.0 * tick - work, committed)],
                committed=committed,
                batch_size=10,
                num_failed_launches=1,
                ready={f"r{number}": "n" for number in range(readers)},
                starting=(),
            )
        )
        readers = decision.target if decision else readers
    assert readers == 8
    whats = [what for _, what, why in scaling.events if why == "starved"]
    assert whats[-1] == "8 readers wanted"
    counters = scaling.counters()
    assert counters["scale_decisions", "up", "starved"] == len(whats)
    assert counters["node_launches_failed",] == 1


def report(reader: str, *tasks: int, busy: float = 0.0) -> ReaderReport:
    header = ChunkHeader(
        chunk=Chunk(0, 0, 10),
        epoch=0,
        offsets=np.arange(4),
        kept=np.array([True, True, False, True]),
        rejects=(),
        num_bytes=3,
    )
    finished = tuple(FinishedLease(task, 1, header) for task in tasks)
    counts = {("crop_bytes",): 3.0 * len(tasks)}
    return ReaderReport(reader=reader, term=1, finished=finished, busy_seconds=busy, counts=counts)


def test_a_repeated_report_counts_once_and_totals_outlive_their_reader() -> None:
    """Answers get lost, so reports are repeated; a counter that falls looks like a restart."""
    totals = ReaderTotals()
    for each in (report("a", 1), report("a", 1), report("a", 1, 2, busy=2.0)):
        totals.add(each)
    assert (totals.num_made, totals.busy_seconds) == (6, 2.0)
    assert totals.take_counts() == (ProcessCounts("a", {("crop_bytes",): 6}),)
    assert totals.take_counts() == ()
    totals.forget("a")
    totals.add(report("b", 2, busy=1.0))
    assert (totals.num_made, totals.busy_seconds) == (9, 3.0)
