"""Who crops which chunk: leases with epochs, deadlines and second tries. Pure: no thread, no clock.

    ask -> waits -> leased -> decided, held by a reader -> released
              ^_______|                  |
              ^__________________________|  the reader was lost: made again, and held to the same

A chunk's crops are a pure function of its turn, so that a needless second try costs time alone;
what must not be is that two count. A lease is good for one result, of the reader and the epoch that
it names, as long as the table holds it; all else is refused and counted.
"""

import heapq
import math
from collections.abc import Iterable

from cluster.leases.lease_deadlines import LeaseConfig, Pace
from cluster.leases.lease_task import (
    GivenLease,
    LeasingReader,
    Task,
    not_reproducible,
    readers_lost,
    same_samples,
)
from cluster.protocol.lease_counters import LeaseCounters, LeaseSnapshot, Loss
from cluster.protocol.messages import ChunkHeader, Finished, ReaderOrders, ReaderReport
from shards.records import ShardInfo, Turn
from shards.redaction import redact

# A chunk in whose hands this many readers died is cropped in isolation, which costs it time alone.
_DEATHS_TO_ISOLATE = 2
_DEATHS_PER_CHUNK = 4
_SHOWN = 20


class LeaseTable:
    """Chunks -> readers, for the life of one Control. Not for several threads at once.

    All times are of a steady clock of the caller; a gap between two looks at the table counts as
    half of `silence_seconds` at most, since who was away himself heard of nobody. A reader is known
    from its first report, or `expect`, until `lost`; a name that was lost is refused for ever.
    """

    def __init__(self, term: int, config: LeaseConfig | None = None) -> None:
        self.term = term
        self.counters = LeaseCounters()
        self._pace = Pace(config or LeaseConfig())
        # Both rise over the run, so that nothing of an older term can be taken for one of these.
        self._last_task = self._last_epoch = term << 32
        self._tasks: dict[int, Task] = {}
        self._queue: list[int] = []  # a heap of what waits; tasks that are gone are passed over
        self._decided: dict[int, ChunkHeader | BaseException] = {}
        self._readers: dict[str, LeasingReader] = {}  # those heard longest ago come first
        self._busy: dict[str, LeasingReader] = {}  # those that began longest ago come first
        self._draining: set[str] = set()
        self._gone: set[str] = set()

    def ask(self, turn: Turn, shard: ShardInfo) -> int:
        """A new task: the chunk of this turn, of this shard."""
        self._last_task += 1
        task = Task(self._last_task, shard, turn)
        self._tasks[task.number] = task
        self._enqueue(task)
        return task.number

    def expect(self, reader: str, now: float) -> None:
        """A reader is up and will report: from now on it is missed if it does not."""
        now = self._pace.look(now)
        if reader not in self._readers and reader not in self._gone:
            self._readers[reader] = LeasingReader(reader, now)

    def exchange(self, report: ReaderReport, now: float) -> ReaderOrders:
        """Take what a reader says, and tell it what to do. Saying the same twice does no harm."""
        now = self._pace.look(now)
        if report.term != self.term or report.reader in self._gone:
            return self._refuse(report)
        reader = self._readers.pop(report.reader, None) or LeasingReader(report.reader, now)
        self._readers[reader.name] = reader
        reader.heard = now
        for finished in report.finished:
            self._take(reader, finished)
        self._begin(reader, report.in_hand, now)
        named = {*report.waiting, *(() if report.in_hand is None else (report.in_hand,))}
        held = {*report.held, *(finished.task for finished in report.finished)}
        drop = tuple((task, self._last_epoch) for task in named if task not in reader.leases)
        leaves = reader.name in self._draining
        wanted = 0 if leaves else report.wanted
        given = self._unheard(reader, named, wanted)
        given += self._grant(reader, wanted - len(given), named | held, now)
        if wanted and not reader.leases and not named and (hedge := self._hedge(reader, held, now)):
            given.append(hedge)
        return ReaderOrders(
            term=self.term,
            leases=tuple(lease.told(self.term) for lease in given),
            release=tuple(task for task in report.held if task not in reader.held),
            drop=drop,
            seconds=self._pace.poll_seconds(len(self._readers)),
            leave=leaves,
        )

    def results(self) -> list[tuple[int, ChunkHeader | BaseException]]:
        """What was decided since the last call, each task once.

        A task is named a second time only with an error, when its crops were lost and could not be
        made again as they were: then the run cannot go on.
        """
        decided, self._decided = self._decided, {}
        return list(decided.items())

    def drain(self, reader: str) -> None:
        """It gets no lease any more, and is told to leave when what it holds was trained on."""
        self._draining.add(reader)

    def lost(self, reader: str, now: float, reason: Loss = "died") -> str:
        """Its leases go to others, and what it held is made again. What it says now is refused.

        The chunk in its hands is blamed for the loss, unless it "left" as it was meant to; the
        shard that it is of, or nothing.
        """
        self._pace.look(now)
        self._gone.add(reader)
        self._draining.discard(reader)
        self._busy.pop(reader, None)
        found = self._readers.pop(reader, None)
        if found is None:
            return ""
        blamed = found.in_hand or next(iter(found.leases.values()), None)
        for lease in list(found.leases.values()):
            lease.task.num_deaths += lease is blamed and reason != "left"
            self._reissue(lease, reason)
        for number in found.held:
            self._make_again(self._tasks[number])
        return redact(blamed.task.shard.uri) if blamed and reason != "left" else ""

    def expired(self, now: float) -> list[str]:
        """Readers with a chunk in their hands for too long: to be killed, and told as `lost`."""
        now = self._pace.look(now)
        late = []
        for reader in self._busy.values():
            assert reader.in_hand is not None
            if now - reader.begun <= self._pace.deadline:
                break
            if now - reader.begun > self._pace.deadline_of(reader.in_hand):
                late.append(reader.name)
        return late

    def silent(self, now: float) -> list[str]:
        """Readers that were not heard of for too long: to be killed, and told as `lost`."""
        now = self._pace.look(now)
        patience = self._pace.patience(len(self._readers))
        silent = []
        for reader in self._readers.values():
            if now - reader.heard <= patience:
                break
            silent.append(reader.name)
        return silent

    def missing(self, task: int, reader: str) -> None:
        """Somebody who asked this reader for the crops of a task did not get them."""
        found = self._tasks.get(task)
        if found is not None and found.holder is not None and found.holder.name == reader:
            found.holder.held.remove(task)
            self._make_again(found)

    def holders(self, tasks: Iterable[int]) -> dict[int, str]:
        """Who holds the crops of these tasks, of those that are held now."""
        found = ((number, self._tasks.get(number)) for number in tasks)
        return {number: task.holder.name for number, task in found if task and task.holder}

    def release(self, tasks: Iterable[int]) -> None:
        """Nobody will ask for these again, finished or not."""
        for number in tasks:
            self._decided.pop(number, None)
            if number in self._tasks:
                self._close(self._tasks[number])

    def forget_all(self) -> None:
        """Release everything that was ever asked for; the readers stay."""
        self.release(list(self._tasks))
        self._queue.clear()
        self._decided.clear()

    def snapshot(self, now: float) -> LeaseSnapshot:
        """How things stand, for whoever looks."""
        now = self._pace.look(now)
        tasks = self._tasks.values()
        held = [task.header.num_bytes for task in tasks if task.holder and task.header]
        running = [lease for reader in self._readers.values() for lease in reader.leases.values()]
        running.sort(key=lambda lease: lease.granted)
        return LeaseSnapshot(
            num_readers=len(self._readers),
            num_waiting=sum(task.waits for task in tasks),
            num_running=len(running),
            num_undecided=sum(task.header is None for task in tasks),
            num_held=len(held),
            held_bytes=sum(held),
            p95_seconds=self._pace.p95,
            deadline=self._pace.deadline,
            oldest=tuple(lease.shown(now) for lease in running[:_SHOWN]),
        )

    def _refuse(self, report: ReaderReport) -> ReaderOrders:
        """Answer one of another term, or one that was given up: a zombie."""
        gone = report.reader in self._gone
        self.counters.late["gone" if gone else "term"] += len(report.finished)
        return ReaderOrders(
            term=self.term,
            release=report.held if gone else (),  # nobody will ask it again
            seconds=self._pace.poll_seconds(len(self._readers)),
            leave=gone,
        )

    def _take(self, reader: LeasingReader, finished: Finished) -> None:
        """Decide a task by what its lease gave."""
        lease = reader.leases.get(finished.task)
        if lease is None or lease.epoch != finished.epoch:
            self._take_late(reader, finished)
            return
        task, header = lease.task, finished.header
        self._end(lease)
        for other in list(task.leases.values()):
            self._end(other)
        self.counters.finished += 1
        self.counters.hedges_won += lease.hedge
        if header is None:
            assert finished.error is not None
            self._close(task, finished.error)
        elif task.header is not None and not same_samples(task.header, header):
            self._close(task, not_reproducible(task))
        else:
            self._hold(task, reader, finished.epoch, header)
            if not lease.isolated:
                self._pace.add(task, header.read_seconds + header.crop_seconds)

    def _hold(self, task: Task, reader: LeasingReader, epoch: int, header: ChunkHeader) -> None:
        if task.header is None:
            task.header = self._decided[task.number] = header
        task.holder, task.held_epoch = reader, epoch
        reader.held.add(task.number)

    def _take_late(self, reader: LeasingReader, finished: Finished) -> None:
        """Refuse a result whose lease no longer holds, unless it was heard before."""
        task = self._tasks.get(finished.task)
        if task is not None and task.holder is reader and task.held_epoch == finished.epoch:
            return
        self.counters.late["fenced"] += 1
        if task is not None and task.header is not None and finished.header is not None:
            self.counters.differing += not same_samples(task.header, finished.header)

    def _begin(self, reader: LeasingReader, in_hand: int | None, now: float) -> None:
        """Note what a reader works on, and since when."""
        lease = None if in_hand is None else reader.leases.get(in_hand)
        if lease is reader.in_hand:
            return
        self._busy.pop(reader.name, None)
        reader.in_hand, reader.begun = lease, now
        if lease is not None:
            self._busy[reader.name] = reader

    def _unheard(self, reader: LeasingReader, named: set[int], wanted: int) -> list[GivenLease]:
        """Leases that a reader does not know of: given again, or to others if it wants none."""
        unheard = [lease for number, lease in reader.leases.items() if number not in named]
        for lease in unheard[max(wanted, 0) :]:
            self._reissue(lease, "returned")
        return unheard[: max(wanted, 0)]

    def _grant(
        self, reader: LeasingReader, wanted: int, known: set[int], now: float
    ) -> list[GivenLease]:
        """The oldest that wait, and no more than its share; of what it has, nothing again."""
        share = math.ceil(len(self._queue) / len(self._readers))
        granted: list[GivenLease] = []
        passed = []
        while self._queue and len(granted) < min(wanted, share):
            number = heapq.heappop(self._queue)
            task = self._tasks.get(number)
            if task is None:
                continue
            if number in known:
                passed.append(number)
            else:
                task.waits = False
                granted.append(self._lease(task, reader, now))
        for number in passed:
            heapq.heappush(self._queue, number)
        return granted

    def _hedge(self, reader: LeasingReader, known: set[int], now: float) -> GivenLease | None:
        """A second try, by a reader with nothing to do, of what another one is slow with."""
        usual = self._pace.to_hedge(len(self._readers))
        if usual is None or self._queue:
            return None
        for slow in self._busy.values():
            assert slow.in_hand is not None
            if now - slow.begun <= usual:
                break
            if slow.in_hand.isolated or now - slow.begun <= usual * slow.in_hand.task.units:
                continue
            for lease in slow.leases.values():  # what waits behind the slow one, too
                if len(lease.task.leases) == 1 and lease.task.number not in known:
                    self.counters.hedged += 1
                    return self._lease(lease.task, reader, now, hedge=True)
        return None

    def _lease(
        self, task: Task, reader: LeasingReader, now: float, *, hedge: bool = False
    ) -> GivenLease:
        self._last_epoch += 1
        isolated = task.num_deaths >= _DEATHS_TO_ISOLATE
        lease = GivenLease(task, self._last_epoch, reader, now, isolated, hedge)
        task.leases[lease.epoch] = reader.leases[task.number] = lease
        self.counters.granted += 1
        return lease

    def _end(self, lease: GivenLease) -> None:
        """From now on nothing counts that is said of this lease."""
        reader = lease.reader
        del lease.task.leases[lease.epoch]
        del reader.leases[lease.task.number]
        if reader.in_hand is lease:
            reader.in_hand = None
            self._busy.pop(reader.name, None)

    def _reissue(self, lease: GivenLease, reason: str) -> None:
        self._end(lease)
        self.counters.reissued[reason] += 1
        self._enqueue(lease.task)

    def _make_again(self, task: Task) -> None:
        task.holder = None
        self.counters.remade += 1
        self._enqueue(task)

    def _enqueue(self, task: Task) -> None:
        """Let a task wait for a reader, unless somebody works on it or it killed too many."""
        if task.leases:
            return
        if task.num_deaths >= _DEATHS_PER_CHUNK:
            self.counters.poisoned += 1
            self._close(task, readers_lost(task))
        else:
            task.waits = True
            heapq.heappush(self._queue, task.number)

    def _close(self, task: Task, error: BaseException | None = None) -> None:
        """Forget a task, deciding it by an error if there is one."""
        del self._tasks[task.number]
        for lease in list(task.leases.values()):
            self._end(lease)
        if task.holder is not None:
            task.holder.held.remove(task.number)
        if error is not None:
            self._decided[task.number] = error
