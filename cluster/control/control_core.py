"""What Control decides, without the actor around it: every word that it hears is taken in here.

Tables and policies are pure and stand in files of their own; here they are told of one another:
what the lease table knows of a dead reader, the staff must know, and what the trainers finished,
the planning.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from cluster.actors.actor_registry import Seen, Staff
from cluster.actors.node_watch import NodeWatch
from cluster.actors.reader_totals import Tally
from cluster.control.batch_planner import Planning
from cluster.control.control_spec import ControlSpec, ControlStart, check_folder
from cluster.control.fencing import TermJournal
from cluster.control.sequencer import SequencerConfig
from cluster.errors import GaveUp
from cluster.leases.lease_table import LeaseTable
from cluster.membership.membership import Membership
from cluster.protocol.actor_rpc import StateRef
from cluster.protocol.driver_protocol import ActorEvent, ControlNews, DriverReport, Role
from cluster.protocol.messages import Beat, Directive, Plans, ReaderOrders, ReaderReport
from shards.stream.journal import Journal

# How many looks back rates are worked out from.
_NUM_MOMENTS = 4


@dataclass(frozen=True, slots=True)
class Moment:
    """Counters at some time: steps finished, samples cropped, seconds of readers' work."""

    at: float
    committed: int
    num_made: int
    busy_seconds: float


class Core:
    """One Control's knowledge of one run. A context; used from one thread.

    `on_change` is called, from any thread, when somebody who waits may get what they wait for.
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
        self.tally = Tally()
        least, most = spec.readers
        self.staff = Staff(
            self.term,
            replace(config.scaling, least=least, most=most),
            spec.trainers,
            {role: len(pools) for role, pools in spec.pools.items()},
            config.supervisor,
        )
        self.nodes = nodes
        self.planning = self._stack.enter_context(self._make_planning(start))
        self.state, self.begun, self.pages = start.state, start.begun, start.pages
        self.members.restore(start.state.step, start.state.cursor)
        self.stopping = False
        self.error: BaseException | None = None
        self.saved: StateRef | None = None
        self._heard, self._knows_actors = 0, False
        self._scaled = self.began
        self._told_until = 0.0
        self.history: deque[Moment] = deque([Moment(self.began, 0, 0, 0.0)], maxlen=_NUM_MOMENTS)
        if start.begun:
            self.planning.keep(spec.journal)
        else:  # nobody can have been trained yet: this is where the run begins
            self.planning.begin(start.state.step, start.state.cursor)

    def _make_planning(self, start: ControlStart) -> Planning:
        spec, order = self.spec, self.spec.order
        if start.begun:
            journal = Journal.read(spec.journal, order.manifest, order.digest, anew=False)
        else:
            journal = Journal(order.manifest, order.digest, start.entries)
        return Planning(
            self.table,
            spec.manifest,
            order.reweighted(journal.weights),
            spec.stream,
            spec.admission,
            SequencerConfig(num_readers=spec.readers[1]),
            journal,
            self.on_change,
        )

    # Readers and trainers.

    def exchange(self, report: ReaderReport) -> ReaderOrders:
        """Leases for a reader, and what it may forget."""
        self.tally.add(report)
        with self.planning.leases() as table:
            return table.exchange(report, time.monotonic())

    def beat(self, beat: Beat) -> Directive:
        """What a trainer is to do."""
        directive = self.members.beat(beat, time.monotonic())
        self._follow()
        return directive

    def plans(self, member: str, first: int, count: int) -> Plans:
        """What is planned by now. Whoever was given up gets nothing."""
        count = min(count, self.spec.num_steps - first)
        if count <= 0 or not self.begun or member not in self.members.members:
            return Plans(self.term, (), {})
        return self.planning.plans(first, count)

    def missing(self, member: str, task: int, reader: str) -> None:
        """This reader did not give what it is said to hold."""
        if member in self.members.members:
            with self.planning.leases() as table:
                table.missing(task, reader)

    def keep(self, member: str, state: StateRef) -> None:
        """A state that a trainer put into the object store."""
        newest = self.saved or self.state
        if state.step > newest.step and member in self.members.members:
            self.saved = state
            self.on_change()

    # The driver.

    def take(self, report: DriverReport) -> None:
        """What became of actors, and what is safe by now."""
        if report.term != self.term:
            return
        now = time.monotonic()
        self._knows_actors = True
        for event in report.events:
            if event.number > self._heard:
                self._heard = event.number
                self._take_event(event, now)
        if report.state.step >= self.state.step:
            self.state = report.state
            self.members.restore(report.state.step, report.state.cursor)
        done = max(self.state.step, report.unsaved)
        if self.saved is not None and self.saved.step <= done:
            self.saved = None
        if report.begun and not self.begun:
            self.planning.keep(self.spec.journal)
            self.begun = True
        if report.stop and not self.stopping:
            self.stopping = True
            self.members.stop(now)
            self.staff.close()
        self.on_change()

    def news(self, report: DriverReport) -> ControlNews:
        """All that the driver has to do."""
        make, kill = self.staff.wanted()
        records = self.members.records(report.recorded, report.history)
        return ControlNews(
            term=self.term,
            heard=self._heard,
            make=make,
            kill=kill,
            ready=self._is_ready(),
            records=records,
            state=self.saved,
            over=self._is_over() and not records.records,
            error=self.error,
        )

    def _is_ready(self) -> bool:
        if self.begun or self.error is not None:
            return self.begun
        try:
            return bool(self.planning.plans(self.state.step, 1).plans)
        except Exception as error:  # the data cannot fill a batch
            self.error = error
            return False

    def _is_over(self) -> bool:
        """Everybody who may hold a state has left, and the last one is safe."""
        phases = {member.beat.phase for member in self.members.members.values()}
        ends = self.stopping or self.members.is_finished
        return ends and phases <= {"starting", "left"} and self.saved is None

    def _take_event(self, event: ActorEvent, now: float) -> None:
        if event.kind == "refused":
            self.error = self.error or event.error
        shard, is_gone = "", event.kind not in ("made", "started")
        if event.kind == "started" and event.role == "reader":
            with self.planning.leases() as table:
                table.expect(event.name, now)
        elif is_gone and event.role == "reader":
            with self.planning.leases() as table:
                shard = table.lost(event.name, now, "left" if event.kind == "left" else "died")
            self.tally.forget(event.name)
        elif is_gone:
            self.members.lost(event.name, event.reason or event.kind, now)
            self._follow()
        self.staff.take(event, now, shard)

    # What nobody asks for.

    def tick(self) -> None:
        """Look after those that say nothing, and do what is due."""
        now = time.monotonic()
        self._give_up_silent(now)
        self._look_at_nodes()
        if now - self._scaled >= self.spec.config.scale_seconds:
            self._scale(now)
        if self._knows_actors:  # or those of the Control before would be ordered once more
            self.staff.tick(now, self._usable_nodes)
        with self.planning.leases() as table:
            for name in self.staff.leaving:
                table.drain(name)
        self._follow()
        self._write_down()
        self._look_for_an_end()
        self.on_change()

    def _give_up_silent(self, now: float) -> None:
        """Who hangs or is silent is dead, whatever it may still say."""
        shards = {}
        with self.planning.leases() as table:
            for name in table.expired(now):
                shards[name] = table.lost(name, now, "hung")
            for name in table.silent(now):
                shards[name] = table.lost(name, now, "silent")
        for name in shards:
            self.tally.forget(name)
        trainers = self.members.silent(now)
        for name in trainers:
            self.members.lost(name, "it hangs, or is silent", now)
        for name in (*shards, *trainers):
            self.staff.give_up(name, shards.get(name, ""), now)

    def _look_at_nodes(self) -> None:
        """Who is on a node that will be taken away has to go before."""
        seen = self.nodes.latest
        draining = {} if seen is None else seen.draining
        if not draining:
            return
        for name, actor in tuple(self.staff.there.items()):
            if actor.node in draining:
                self.staff.leave(name)
                if actor.role == "trainer":
                    self.members.draining(name, time.monotonic())

    def _usable_nodes(self, role: Role, pool: int) -> list[str]:
        """Nodes of a pool on which something new may be made."""
        seen, pools = self.nodes.latest, self.spec.pools[role]
        nodes = [] if seen is None else seen.of(pools[pool % len(pools)])
        return [node.id for node in nodes if not node.drains]

    def _scale(self, now: float) -> None:
        self._scaled = now
        committed = max(self.members.min_committed, 0)
        moment = Moment(now, committed, self.tally.num_made, self.tally.busy_seconds)
        self.history.append(moment)
        seen = self.nodes.latest
        self.staff.scale(
            now,
            self.tally,
            [member.beat for member in self.members.members.values()],
            Seen(
                committed=self.members.min_committed,
                batch_size=self.spec.stream.batch_size,
                num_failed=0 if seen is None else sum(one.count for one in seen.failed),
            ),
        )

    def _follow(self) -> None:
        """Plan where the trainers go on, and let go of what they have finished."""
        self.planning.follow(self.members.generation)
        self.planning.committed(self.members.min_committed)
        self.on_change()

    def _write_down(self) -> None:
        """What was decided, into the journal, for whoever wants to know later."""
        news = [event for event in self.events() if event[0] > self._told_until]
        for _, what, why in news:
            self.journal.append({"what": what, "why": why, "time": round(time.time(), 1)})
        self._told_until = max((event[0] for event in news), default=self._told_until)

    def events(self) -> Iterable[tuple[float, str, str]]:
        """What was decided, when, and why; the newest last."""
        found = [(event.at, event.what, event.why) for event in self.members.events]
        return sorted([*found, *self.staff.events])

    def _look_for_an_end(self) -> None:
        reason = self.members.gave_up or self.staff.gave_up
        if reason:
            self.error = self.error or GaveUp(f"gave up because {reason}")
        try:
            self.planning.plans(max(self.members.min_committed, self.state.step), 1)
        except Exception as error:  # what ended the stream ends the run, where it is needed
            self.error = self.error or error

    def __enter__(self) -> "Core":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
