"""Control core: the decisions of Control, without the actor around it.

Tables and policies are pure and lie in files of their own. The core connects them: the registry
learns of readers that the lease table lost, and the planner of steps that the trainers finished.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from cluster.actors.actor_registry import ActorRegistry
from cluster.actors.node_watch import NodeWatch
from cluster.actors.reader_scaling import ReaderScaling, ScalingInput
from cluster.actors.reader_totals import ReaderTotals
from cluster.control.batch_planner import BatchPlanner
from cluster.control.control_spec import ControlSpec, ControlStart, check_folder
from cluster.control.fencing import TermJournal
from cluster.control.sequencer import SequencerConfig, SequencerSpec
from cluster.errors import RestartLoop
from cluster.leases.lease_table import LeaseTable
from cluster.membership.membership import Membership
from cluster.protocol.driver_protocol import ActorEvent, DriverOrders, DriverReport
from cluster.protocol.messages import (
    Directive,
    HeartbeatMessage,
    Plans,
    ReaderOrders,
    ReaderReport,
    Role,
    StateRef,
)
from cluster.protocol.step_log import Records
from shards.stream.journal import Journal

# Rates are differences over this many samples.
_NUM_RATE_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class RateSample:
    """Totals at one moment: finished steps, cropped samples, busy seconds of readers."""

    at: float
    committed: int
    num_made: int
    busy_seconds: float


class ControlCore:
    """Knowledge of one Control about one run. A context; used from one thread.

    `on_change` is called, from any thread, after something that a waiting caller may wait for.
    """

    def __init__(
        self,
        spec: ControlSpec,
        start: ControlStart,
        nodes: NodeWatch,
        on_change: Callable[[], None],
    ) -> None:
        check_folder(spec.folder, start.nonce)
        self.spec, self.on_change = spec, on_change
        self.began = time.monotonic()
        self._stack = ExitStack()
        self.journal = self._stack.enter_context(TermJournal.open(spec.folder))
        self.term = self.journal.term
        config = spec.config
        self.table = LeaseTable(self.term, config.leases)
        self.members = Membership(
            self.term, spec.stream.batch_size, spec.trainers, config.membership
        )
        self.totals = ReaderTotals()
        min_readers, max_readers = spec.readers
        self.actors = ActorRegistry(
            self.term, {"reader": min_readers, "trainer": spec.trainers}, config.restarts
        )
        bounds = replace(config.scaling, min_readers=min_readers, max_readers=max_readers)
        self.scaling = ReaderScaling(bounds, len(spec.pools["reader"]))
        self.nodes = nodes
        self.planner = self._stack.enter_context(self._make_planner(start))
        self.state, self.begun, self.pages = start.state, start.begun, start.pages
        self.members.restore(start.state.step, start.state.cursor)
        self.stopping = False
        self.error: BaseException | None = None
        self._end_of_data: BaseException | None = None  # is raised when the last state is safe
        self.saved: StateRef | None = None
        self._last_event, self._knows_actors = 0, False
        self._scaled_at = self.began
        self._journaled_until = 0.0
        self.history = deque([RateSample(self.began, 0, 0, 0.0)], maxlen=_NUM_RATE_SAMPLES)
        if start.begun:
            self.planner.keep_journal(spec.journal)
        else:  # no step was trained yet: the run begins here
            self.planner.begin(start.state.step, start.state.cursor)

    def _make_planner(self, start: ControlStart) -> BatchPlanner:
        spec, order = self.spec, self.spec.order
        if start.begun:
            journal = Journal.read(spec.journal, order.manifest, order.digest, replace_other=False)
        else:
            journal = Journal(order.manifest, order.digest, start.entries)
        sequencer = SequencerSpec(
            shards=spec.manifest.shards,
            order=order.reweighted(journal.weights),
            stream=spec.stream,
            admission=spec.admission,
            config=SequencerConfig(num_readers=spec.readers[1]),
            journal=journal,
        )
        return BatchPlanner(self.table, sequencer, self.on_change)

    # Calls of readers and trainers.

    def exchange(self, report: ReaderReport) -> ReaderOrders:
        """Take the report of a reader, and return its orders."""
        self.totals.add(report)
        with self.planner.leases() as table:
            return table.exchange(report, time.monotonic())

    def beat(self, beat: HeartbeatMessage) -> Directive:
        """Take the heartbeat of a trainer, and return its directive."""
        directive = self.members.beat(beat, time.monotonic())
        self._follow()
        return directive

    def plans(self, member: str, first: int, count: int) -> Plans:
        """Return the present plans among these steps; none to a trainer that was given up."""
        count = min(count, self.spec.num_steps - first)
        none = Plans(self.term, (), {})
        if count <= 0 or not self.begun or member not in self.members.members:
            return none
        try:
            return self.planner.plans(first, count)
        except Exception:  # `tick` ends the run; a trainer that raised it would lose its state
            return none

    def missing(self, member: str, task: int, reader: str) -> None:
        """Note that a reader did not give the crops of a task that it should hold."""
        if member in self.members.members:
            with self.planner.leases() as table:
                table.missing(task, reader)

    def keep(self, state: StateRef) -> None:
        """Take a state that a trainer put into the object store."""
        newest = self.saved or self.state
        if state.step > newest.step and state.giver in self.members.members:
            self.saved = state
            self.on_change()

    # Calls of the driver.

    def take(self, report: DriverReport) -> None:
        """Take the report of the driver: events of actors, the safe state, a wish to stop."""
        if report.term != self.term:
            return
        now = time.monotonic()
        self._knows_actors = True
        for event in report.events:
            if event.number > self._last_event:
                self._last_event = event.number
                self.take_event(event, now)
        if report.state.step >= self.state.step:
            self.state = report.state
            self.members.restore(report.state.step, report.state.cursor)
        saved = self.saved
        if saved is not None and (
            saved.step <= self.state.step or (saved.step, saved.giver) == report.unsaved
        ):
            self.saved = None
        if report.begun and not self.begun:
            self.planner.keep_journal(self.spec.journal)
            self.begun = True
        if report.stop and not self.stopping:
            self.stopping = True
            self.members.stop(now)
            self.actors.close()
        self.on_change()

    def orders(self, report: DriverReport) -> DriverOrders:
        """Return everything that the driver has to do."""
        create, kill = self.actors.requests()
        records = self.members.records(report.recorded, report.history)
        finished = self._is_finished() and not records.records
        return DriverOrders(
            last_event=self._last_event,
            create=create,
            kill=kill,
            data_ready=self._is_data_ready(),
            records=records,
            state=None if self._is_ahead_of(records) else self.saved,
            finished=finished,
            error=self.error or (self._end_of_data if finished else None),
        )

    def _is_ahead_of(self, records: Records) -> bool:
        """Return True if its trainer has yet to report steps before the state that it gave.

        A state comes at once and reports with a heartbeat. Saved before them, it would leave a gap
        in the log of a run that is killed now and then resumes after the state.
        """
        if self.saved is None or self.saved.step <= records.end:
            return False
        giver = self.members.members.get(self.saved.giver)
        return giver is not None and giver.heartbeat.phase != "left"

    def take_event(self, event: ActorEvent, now: float) -> None:
        """Take one event of an actor."""
        if event.kind == "refused":
            self.error = self.error or event.error
        shard, is_gone = "", event.kind not in ("created", "started")
        if event.kind == "started" and event.role == "reader":
            with self.planner.leases() as table:
                table.expect(event.name, now)
        elif is_gone and event.role == "reader":
            with self.planner.leases() as table:
                shard = table.lost(event.name, now, "left" if event.kind == "left" else "died")
            self.totals.forget(event.name)
        elif is_gone:
            if event.kind != "left" and self.saved is not None and self.saved.giver == event.name:
                self.saved = None  # lost, too: it must not hide the state of another trainer
            self.members.lost(event.name, event.reason or event.kind, now)
            self._follow()
        self.actors.apply(event, now, shard)

    def _is_data_ready(self) -> bool:
        if self.begun or self.error is not None:
            return self.begun
        try:
            return bool(self.planner.plans(self.state.step, 1).plans)
        except Exception as error:  # the data cannot fill a batch
            self.error = error
            return False

    def _is_finished(self) -> bool:
        """Return True if all trainers that may hold a state have left, and the last is safe."""
        phases = {member.heartbeat.phase for member in self.members.members.values()}
        ends = self.stopping or self.members.is_finished
        return ends and phases <= {"starting", "left"} and self.saved is None

    # Regular work.

    def tick(self) -> None:
        """Give up silent actors, and do what is due."""
        now = time.monotonic()
        self._give_up_silent(now)
        self._drain_leaving_nodes()
        if now - self._scaled_at >= self.spec.config.scale_seconds:
            self._scale(now)
        if self._knows_actors:  # otherwise the actors of an earlier Control would be doubled
            self.actors.tick(now, self._usable_nodes)
        with self.planner.leases() as table:
            for name in self.actors.draining:
                table.drain(name)
        self._follow()
        self._write_journal()
        self._check_end()
        self.on_change()

    def _give_up_silent(self, now: float) -> None:
        """Declare actors dead that hang or are silent; their later messages are refused."""
        shards = {}
        with self.planner.leases() as table:
            for name in table.expired(now):
                shards[name] = table.lost(name, now, "hung")
            for name in table.silent(now):
                shards[name] = table.lost(name, now, "silent")
        for name in shards:
            self.totals.forget(name)
        trainers = self.members.silent(now)
        for name in trainers:
            self.members.lost(name, "it hangs, or is silent", now)
        for name in (*shards, *trainers):
            self.actors.give_up(name, shards.get(name, ""), now)

    def _drain_leaving_nodes(self) -> None:
        """Drain the actors on nodes that will be taken away."""
        seen = self.nodes.latest
        draining = {} if seen is None else seen.draining
        if not draining:
            return
        for name, actor in self.actors.started.items():
            if actor.node in draining:
                self.actors.drain(name)
                if actor.role == "trainer":
                    self.members.draining(name, time.monotonic())

    def _usable_nodes(self, role: Role, pool: int) -> list[str]:
        """Return the nodes of a pool that stay."""
        seen, pools = self.nodes.latest, self.spec.pools[role]
        nodes = [] if seen is None else seen.of(pools[pool % len(pools)])
        return [node.id for node in nodes if not node.drains]

    def _scale(self, now: float) -> None:
        """Measure rates, and follow the decision about the number of readers."""
        self._scaled_at = now
        committed, totals = self.members.min_committed, self.totals
        self.history.append(
            RateSample(now, max(committed, 0), totals.num_made, totals.busy_seconds)
        )
        if self.actors.is_closed:
            return
        seen = self.nodes.latest
        decision = self.scaling.decide(
            ScalingInput(
                now=now,
                totals=totals,
                beats=[member.heartbeat for member in self.members.members.values()],
                committed=committed,
                batch_size=self.spec.stream.batch_size,
                num_failed_launches=0 if seen is None else sum(one.count for one in seen.failed),
                ready=self.actors.ready("reader"),
                starting=self.actors.starting("reader"),
            )
        )
        if decision is not None:
            for name in decision.drain:
                self.actors.drain(name)
            self.actors.want("reader", decision.target, decision.pool)

    def _follow(self) -> None:
        """Plan where the trainers continue, and drop what they have finished."""
        self.planner.follow(self.members.generation)
        self.planner.commit(self.members.min_committed)
        self.on_change()

    def _write_journal(self) -> None:
        """Append new decisions to the journal of this term."""
        self.planner.restore_journal()
        news = [event for event in self.events() if event[0] > self._journaled_until]
        for _, what, why in news:
            self.journal.append({"what": what, "why": why, "time": round(time.time(), 1)})
        self._journaled_until = max((event[0] for event in news), default=self._journaled_until)

    def events(self) -> Iterable[tuple[float, str, str]]:
        """Return decisions as (time, what, why), the newest last."""
        members = [(event.at, event.what, event.why) for event in self.members.events]
        actors = [(at, what, "") for at, what in self.actors.policy.events]
        return sorted([*members, *actors, *self.scaling.events])

    def _check_end(self) -> None:
        """Set `error` if the run cannot continue."""
        reason = self.members.gave_up or self.actors.policy.gave_up
        if reason:
            self.error = self.error or RestartLoop(f"gave up because {reason}")
        committed = max(self.members.min_committed, self.state.step)
        if self.stopping or committed >= self.spec.num_steps:
            return
        try:
            self.planner.plans(committed, 1)
        except Exception as error:  # the stream ended before the next step
            self._end_without_data(error, committed)

    def _end_without_data(self, error: Exception, committed: int) -> None:
        """End the run with the error of its stream, once the steps before it are saved."""
        if not self.begun or committed <= self.state.step:
            self.error = self.error or error
            return
        self.stopping, self._end_of_data = True, error
        self.members.stop_without_data(f"the data ended: {type(error).__name__}", time.monotonic())
        self.actors.close()

    def __enter__(self) -> "ControlCore":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
