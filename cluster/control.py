"""Control: the one actor that knows who does what. It sees headers and plans, and no crops.

It is made on the head by the driver, and made anew when it dies: all that it knows it learns again
from those who ask it, and whatever it says carries its term, so that nobody obeys two of them.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from cluster.bell import Bell
from cluster.config import ClusterConfig
from cluster.leases import LeaseTable
from cluster.links import StateRef
from cluster.membership import Membership
from cluster.messages import Beat, Directive, Plans, ReaderOrders, ReaderReport
from cluster.orders import ActorEvent, ControlNews, DriverReport
from cluster.planning import Planning
from cluster.sequencer import SequencerConfig
from cluster.staff import Staff
from cluster.tally import Tally
from shards.admission import AdmissionConfig
from shards.errors import ConfigError
from shards.journal import Entry, Journal
from shards.manifest import Manifest
from shards.order import Order
from shards.stream import StreamConfig

# How long an answer may wait for what was asked for, before it says that there is nothing.
_WAIT_SECONDS = 1.0
_NONCE = "nonce"


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlSpec:
    """What a run is, as far as Control must know.

    `folder` is Control's own, within that of the run, and `journal` the file of that name there.
    `readers`: how many at least, and at most.
    """

    folder: Path
    journal: Path
    manifest: Manifest
    order: Order
    stream: StreamConfig
    admission: AdmissionConfig
    num_steps: int
    readers: tuple[int, int]
    trainers: int
    config: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlStart:
    """Where a Control begins. `begun`: the journal of the run is on disk; else it is `entries`.

    `nonce` is what the driver wrote into the run folder, to be found there.
    """

    state: StateRef
    begun: bool
    nonce: str
    entries: tuple[Entry, ...] = ()


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=10_000)
class Control:
    """See `links` for what it answers to readers and trainers, `orders` for the driver."""

    async def start(self, spec: ControlSpec, start: ControlStart) -> int:
        """Begin, and give its term. Raises ConfigError."""
        _check_folder(spec.folder, start.nonce)
        self._spec, self._state, self._begun = spec, start.state, start.begun
        self.term = _next_term(spec.folder)
        self._bell = Bell()
        self._table = LeaseTable(self.term, spec.config.leases)
        self._planning = self._make_planning(start)
        self._members = Membership(
            self.term, spec.stream.batch_size, spec.trainers, spec.config.membership
        )
        self._members.restore(start.state.step, start.state.cursor)
        self._staff = Staff(spec.readers[0], spec.trainers, self.term)
        self._tally = Tally()
        self._saved: StateRef | None = None
        self._error: BaseException | None = None
        self._heard = 0
        self._stopping = False
        if not self._begun:
            # Nobody can have been trained yet: this is where the run begins.
            self._planning.begin(start.state.step, start.state.cursor)
        else:
            self._planning.keep(self._spec.journal)
        self._ticking = asyncio.create_task(self._tick_on())
        return self.term

    # Readers.

    async def exchange(self, report: ReaderReport) -> ReaderOrders:
        """Leases for a reader, and what it may forget."""
        self._tally.add(report)
        with self._planning.leases() as table:
            return table.exchange(report, time.monotonic())

    # Trainers.

    async def beat(self, beat: Beat) -> Directive:
        """What a trainer is to do."""
        directive = self._members.beat(beat, time.monotonic())
        self._follow()
        return directive

    async def plans(self, member: str, first: int, count: int) -> Plans:
        """Plans from step `first` on, as soon as there is one. Raises what ended the stream."""
        count = min(count, self._spec.num_steps - first)
        found = Plans(self.term, (), {})
        deadline = time.monotonic() + _WAIT_SECONDS
        while count > 0 and member in self._members.members:
            if self._begun:
                found = self._planning.plans(first, count)
            if found.plans or time.monotonic() >= deadline:
                break
            await self._bell.wait(deadline - time.monotonic())
        return found

    async def missing(self, member: str, task: int, reader: str) -> None:
        """This reader did not give the crops of a task that it is said to hold."""
        if member in self._members.members:
            with self._planning.leases() as table:
                table.missing(task, reader)

    async def state(self) -> StateRef:
        """The newest state that is safe."""
        return self._state

    async def saved(self, member: str, step: int, refs: Sequence[Any]) -> None:
        """A state that a trainer put into the object store."""
        newest = max(self._state.step, self._saved.step if self._saved else -1)
        if step > newest and member in self._members.members:
            self._saved = StateRef(step, tuple(refs))
            self._bell.ring()

    # The driver.

    async def tell(self, report: DriverReport) -> None:
        """What became of actors, and what is safe by now."""
        if report.term != self.term:
            return
        now = time.monotonic()
        for event in report.events:
            if event.number > self._heard:
                self._heard = event.number
                self._take_event(event, now)
        if report.state.step >= self._state.step:
            self._state = report.state
            self._members.restore(report.state.step, report.state.cursor)
        if self._saved is not None and self._saved.step <= self._state.step:
            self._saved = None
        if report.begun and not self._begun:
            self._planning.keep(self._spec.journal)
            self._begun = True
        if report.stop and not self._stopping:
            self._stopping = True
            self._members.stop(now)
            self._staff.close()
        self._bell.ring()

    async def news(self, report: DriverReport) -> ControlNews:
        """What the driver has to do; at once if there is anything new, else after a while."""
        await self.tell(report)
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            news = self._news(report)
            if _is_new(news, report) or time.monotonic() >= deadline:
                return news
            await self._bell.wait(deadline - time.monotonic())

    def _news(self, report: DriverReport) -> ControlNews:
        make, kill = self._staff.wanted()
        records = self._members.records(report.recorded, report.history)
        return ControlNews(
            term=self.term,
            heard=self._heard,
            make=make,
            kill=kill,
            ready=self._is_ready(),
            records=records,
            state=self._saved,
            over=self._is_over() and not records.records,
            error=self._error,
            readings=self._readings(),
        )

    def _is_ready(self) -> bool:
        if self._begun or self._error is not None:
            return self._begun
        return bool(self._planning.plans(self._state.step, 1).plans)

    def _is_over(self) -> bool:
        """Everybody who may hold a state has left, and the last one is safe."""
        phases = {member.beat.phase for member in self._members.members.values()}
        ends = self._stopping or self._members.is_finished
        return ends and phases <= {"starting", "left"} and self._saved is None

    def _take_event(self, event: ActorEvent, now: float) -> None:
        if event.kind == "refused":
            self._error = self._error or event.error
        gone = self._staff.take(event)
        if gone:
            self._lose(event, now)

    def _lose(self, event: ActorEvent, now: float) -> None:
        if event.role == "reader":
            with self._planning.leases() as table:
                table.lost(event.name, now, "left" if event.kind == "left" else "died")
            self._tally.forget(event.name)
        else:
            self._members.lost(event.name, event.reason or event.kind, now)
            self._follow()

    def _make_planning(self, start: ControlStart) -> Planning:
        spec, order = self._spec, self._spec.order
        if start.begun:
            journal = Journal.read(self._spec.journal, order.manifest, order.digest, anew=False)
        else:
            journal = Journal(order.manifest, order.digest, start.entries)
        config = SequencerConfig(num_readers=spec.readers[1])
        return Planning(
            self._table,
            spec.manifest,
            order.reweighted(journal.weights),
            spec.stream,
            spec.admission,
            config,
            journal,
            self._bell.ring,
        )

    def _follow(self) -> None:
        """Plan where the trainers go on, and let go of what they have finished."""
        self._planning.follow(self._members.generation)
        self._planning.committed(self._members.min_committed)
        self._bell.ring()

    async def _tick_on(self) -> None:
        """Look after those that say nothing, until this Control is killed."""
        while True:
            try:
                self._tick(time.monotonic())
            except BaseException as error:  # the run must not go on unattended
                self._error = self._error or error
                raise
            await asyncio.sleep(self._spec.config.tick_seconds)

    def _tick(self, now: float) -> None:
        with self._planning.leases() as table:
            late = [(name, "hung") for name in table.expired(now)]
            late += [(name, "silent") for name in table.silent(now)]
            for name, reason in late:
                table.lost(name, now, reason)  # type: ignore[arg-type]
        for name, reason in late:
            self._tally.forget(name)
            self._staff.kill(name)
        for name in self._members.silent(now):
            self._members.lost(name, "silent", now)
            self._staff.kill(name)
        self._follow()
        self._staff.tick()
        self._look_for_an_end()

    def _look_for_an_end(self) -> None:
        if self._members.gave_up:
            self._error = self._error or self._staff.gave_up(self._members.gave_up)
        try:
            self._planning.plans(max(self._members.min_committed, self._state.step), 1)
        except Exception as error:  # what ended the stream ends the run, where it is needed
            self._error = self._error or error

    def _readings(self) -> dict[tuple[str, str], float]:
        """Counters and gauges by name and label, as `metrics` knows them."""
        members, leases = self._members, self._table.counters
        found: dict[tuple[str, str], float] = dict(self._tally.totals)
        found |= self._staff.readings()
        found["control_term", ""] = self.term
        found["generations", ""] = members.num_generations
        generation = members.generation if members.is_running else None
        found["world_size", ""] = len(generation.members) if generation else 0
        for name, counts in (
            ("leases_reissued", leases.reissued),
            ("results_refused", leases.late),
            ("beats_refused", members.refused),
        ):
            found |= {(name, str(reason)): count for reason, count in counts.items()}
        return found


def _is_new(news: ControlNews, report: DriverReport) -> bool:
    """Whether the driver has something to do by this."""
    records = news.records
    return bool(
        any(order.name not in report.making for order in news.make)
        or any(name not in report.killing for name in news.kill)
        or records.records
        or records.history != report.history
        or (news.ready and not report.begun)
        or (news.state is not None)
        or news.over
        or news.error is not None
    )


def _next_term(folder: Path) -> int:
    """One above all before it; nobody else can have it."""
    term = 1
    while True:
        try:
            (folder / f"term-{term}.jsonl").open("x").close()
            return term
        except FileExistsError:
            term += 1


def mark_folder(folder: Path) -> str:
    """Leave a mark that a Control must find there; what it is."""
    nonce = secrets.token_hex(16)
    folder.mkdir(exist_ok=True)
    (folder / _NONCE).write_text(nonce)
    return nonce


def _check_folder(folder: Path, nonce: str) -> None:
    """Refuse a folder that only the driver can see: the journals lie there."""
    found = ""
    with suppress(OSError):
        found = (folder / _NONCE).read_text()
    if found != nonce:
        raise ConfigError(
            f"the head node of the Ray cluster cannot see {folder.parent}, where Control keeps its "
            "journals; --out must be a folder that both see: start the command on the head (ray "
            "job submit), or give an --out on a file system that both have mounted there"
        )
