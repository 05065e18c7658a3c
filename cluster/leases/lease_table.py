"""Lease table: which reader crops which chunk. Pure: no thread, no clock.

    add_task -> waiting -> leased -> decided, held by a reader -> released
                   ^_________|                  |
                   ^____________________________|  the reader was lost: cropped again, and compared

The crops of a chunk are a pure function of its turn, so a needless second lease costs only time;
but two results must never count. A lease is valid for one result, of the reader and the epoch that
it names, while the table holds it. Any other result is refused and counted.
"""

import heapq
import math
from collections.abc import Iterable

from cluster.leases.lease_deadlines import LeaseConfig, LeaseDeadlines
from cluster.leases.lease_task import (
    ActiveLease,
    ChunkTask,
    ReaderRecord,
    not_reproducible,
    readers_lost,
    same_samples,
)
from cluster.protocol.lease_counters import LeaseCounters, LeaseSnapshot, Loss
from cluster.protocol.messages import ChunkHeader, FinishedLease, ReaderOrders, ReaderReport
from shards.records import ShardInfo, Turn
from shards.redaction import redact

# After this many deaths of its readers a chunk is cropped in isolation, which only costs time.
_DEATHS_TO_ISOLATE = 2
_DEATHS_TO_GIVE_UP = 4
_MAX_SHOWN = 20


class LeaseTable:
    """Leases of one Control. The methods are called from one thread at a time.

    Times are of a steady clock of the caller; a gap between two calls counts as half of
    `silence_seconds` at most (`GapClock`). A reader is known from its first report, or `expect`,
    until `lost`; messages of a lost name are refused for ever.
    """

    def __init__(self, term: int, config: LeaseConfig | None = None) -> None:
        self.term = term
        self.counters = LeaseCounters()
        self._deadlines = LeaseDeadlines(config or LeaseConfig())
        # Both rise over the run: numbers of an older term cannot be mistaken for present ones.
        self._last_task = self._last_epoch = term << 32
        self._tasks: dict[int, ChunkTask] = {}
        self._queue: list[int] = []  # heap of waiting tasks; released ones are skipped
        self._decided: dict[int, ChunkHeader | BaseException] = {}
        self._readers: dict[str, ReaderRecord] = {}  # oldest report first
        self._busy: dict[str, ReaderRecord] = {}  # those with a current lease, oldest first
        self._draining: set[str] = set()
        self._gone: set[str] = set()

    def add_task(self, turn: Turn, shard: ShardInfo) -> int:
        """Request the chunk of a turn; return the number of the new task."""
        self._last_task += 1
        task = ChunkTask(self._last_task, shard, turn)
        self._tasks[task.number] = task
        self._enqueue(task)
        return task.number

    def expect(self, reader: str, now: float) -> None:
        """Note that a reader has started: from now on it is silent if it does not report."""
        now = self._deadlines.clock(now)
        if reader not in self._readers and reader not in self._gone:
            self._readers[reader] = ReaderRecord(reader, now)

    def exchange(self, report: ReaderReport, now: float) -> ReaderOrders:
        """Take the report of a reader, and return its orders. A repeated report has no effect."""
        now = self._deadlines.clock(now)
        if report.term != self.term or report.reader in self._gone:
            return self._refuse(report)
        reader = self._readers.pop(report.reader, None) or ReaderRecord(report.reader, now)
        self._readers[reader.name] = reader
        reader.last_report = now
        for finished in report.finished:
            self._take(reader, finished)
        self._begin(reader, report.current_task, now)
        current = () if report.current_task is None else (report.current_task,)
        named = {*report.waiting, *current}
        held = {*report.held, *(finished.task for finished in report.finished)}
        drop = tuple((task, self._last_epoch) for task in named if task not in reader.leases)
        leaves = reader.name in self._draining
        wanted = 0 if leaves else report.wanted
        given = self._unnamed(reader, named, wanted)
        given += self._grant(reader, wanted - len(given), named | held, now)
        if wanted and not reader.leases and not named and (hedge := self._hedge(reader, held, now)):
            given.append(hedge)
        return ReaderOrders(
            term=self.term,
            leases=tuple(lease.message(self.term) for lease in given),
            release=tuple(task for task in report.held if task not in reader.held),
            drop=drop,
            seconds=self._deadlines.poll_seconds(len(self._readers)),
            leave=leaves,
        )

    def results(self) -> list[tuple[int, ChunkHeader | BaseException]]:
        """Return the results since the last call, each task once.

        A task appears a second time only with an error: its crops were lost, and the new ones
        differ or could not be made. Then the run cannot continue.
        """
        decided, self._decided = self._decided, {}
        return list(decided.items())

    def drain(self, reader: str) -> None:
        """Grant no further lease to a reader; it leaves when its crops were trained on."""
        self._draining.add(reader)

    def lost(self, reader: str, now: float, reason: Loss = "died") -> str:
        """Remove a reader: its leases go to others, and chunks whose crops it held are recropped.

        The chunk that it cropped is blamed, unless the reader "left" as it was told to. Return the
        shard of that chunk, or an empty string.
        """
        self._deadlines.clock(now)
        self._gone.add(reader)
        self._draining.discard(reader)
        self._busy.pop(reader, None)
        found = self._readers.pop(reader, None)
        if found is None:
            return ""
        blamed = found.current or next(iter(found.leases.values()), None)
        for lease in list(found.leases.values()):
            lease.task.num_deaths += lease is blamed and reason != "left"
            self._reissue(lease, reason)
        for number in found.held:
            self._recrop(self._tasks[number])
        return redact(blamed.task.shard.uri) if blamed and reason != "left" else ""

    def expired(self, now: float) -> list[str]:
        """Return the readers that crop a chunk for too long; the caller must call `lost`."""
        now = self._deadlines.clock(now)
        late = []
        for reader in self._busy.values():
            assert reader.current is not None
            if now - reader.began <= self._deadlines.deadline:
                break
            if now - reader.began > self._deadlines.deadline_of(reader.current):
                late.append(reader.name)
        return late

    def silent(self, now: float) -> list[str]:
        """Return the readers without a report for too long; the caller must call `lost`."""
        now = self._deadlines.clock(now)
        limit = self._deadlines.silence_seconds(len(self._readers))
        silent = []
        for reader in self._readers.values():
            if now - reader.last_report <= limit:
                break
            silent.append(reader.name)
        return silent

    def missing(self, task: int, reader: str) -> None:
        """Note that a reader did not have the crops of a task: the chunk is recropped."""
        found = self._tasks.get(task)
        if found is not None and found.holder is not None and found.holder.name == reader:
            found.holder.held.remove(task)
            self._recrop(found)

    def holders(self, tasks: Iterable[int]) -> dict[int, str]:
        """Return the readers that hold the crops of these tasks, as far as they are held."""
        found = ((number, self._tasks.get(number)) for number in tasks)
        return {number: task.holder.name for number, task in found if task and task.holder}

    def release(self, tasks: Iterable[int]) -> None:
        """Drop tasks that are not needed again, finished or not."""
        for number in tasks:
            self._decided.pop(number, None)
            if number in self._tasks:
                self._close(self._tasks[number])

    def forget_all(self) -> None:
        """Release all tasks; the readers stay."""
        self.release(list(self._tasks))
        self._queue.clear()
        self._decided.clear()

    def snapshot(self, now: float) -> LeaseSnapshot:
        """Return the state of the table."""
        now = self._deadlines.clock(now)
        tasks = self._tasks.values()
        held = [task.header.num_bytes for task in tasks if task.holder and task.header]
        running = [lease for reader in self._readers.values() for lease in reader.leases.values()]
        running.sort(key=lambda lease: lease.granted)
        return LeaseSnapshot(
            num_readers=len(self._readers),
            num_waiting=sum(task.waits for task in tasks),
            num_running=len(running),
            num_held=len(held),
            held_bytes=sum(held),
            deadline=self._deadlines.deadline,
            oldest=tuple(lease.snapshot(now) for lease in running[:_MAX_SHOWN]),
        )

    def _refuse(self, report: ReaderReport) -> ReaderOrders:
        """Answer a reader of another term, or one that was lost: its results do not count."""
        gone = report.reader in self._gone
        self.counters.late["gone" if gone else "term"] += len(report.finished)
        return ReaderOrders(
            term=self.term,
            release=report.held if gone else (),  # no trainer will request them from it
            seconds=self._deadlines.poll_seconds(len(self._readers)),
            leave=gone,
        )

    def _take(self, reader: ReaderRecord, finished: FinishedLease) -> None:
        """Decide a task by the result of its lease."""
        lease = reader.leases.get(finished.task)
        if lease is None or lease.epoch != finished.epoch:
            self._take_late(reader, finished)
            return
        task, header = lease.task, finished.header
        self._end(lease)
        for other in list(task.leases.values()):
            self._end(other)
        self.counters.hedges_won += lease.hedge
        if header is None:
            assert finished.error is not None
            self._close(task, finished.error)
        elif task.header is not None and not same_samples(task.header, header):
            self._close(task, not_reproducible(task))
        else:
            self._hold(task, reader, finished.epoch, header)
            if not lease.isolated:
                self._deadlines.add(task, header.read_seconds + header.crop_seconds)

    def _hold(self, task: ChunkTask, reader: ReaderRecord, epoch: int, header: ChunkHeader) -> None:
        if task.header is None:
            task.header = self._decided[task.number] = header
        task.holder, task.held_epoch = reader, epoch
        reader.held.add(task.number)

    def _take_late(self, reader: ReaderRecord, finished: FinishedLease) -> None:
        """Refuse a result whose lease is over, unless it is a repeated one."""
        task = self._tasks.get(finished.task)
        if task is not None and task.holder is reader and task.held_epoch == finished.epoch:
            return
        self.counters.late["fenced"] += 1
        if task is not None and task.header is not None and finished.header is not None:
            self.counters.differing += not same_samples(task.header, finished.header)

    def _begin(self, reader: ReaderRecord, task: int | None, now: float) -> None:
        """Note the current lease of a reader, and when it began."""
        lease = None if task is None else reader.leases.get(task)
        if lease is reader.current:
            return
        self._busy.pop(reader.name, None)
        reader.current, reader.began = lease, now
        if lease is not None:
            self._busy[reader.name] = reader

    def _unnamed(self, reader: ReaderRecord, named: set[int], wanted: int) -> list[ActiveLease]:
        """Return the leases that a report lacks: sent again, or reissued if it wants none."""
        unnamed = [lease for number, lease in reader.leases.items() if number not in named]
        for lease in unnamed[max(wanted, 0) :]:
            self._reissue(lease, "returned")
        return unnamed[: max(wanted, 0)]

    def _grant(
        self, reader: ReaderRecord, wanted: int, known: set[int], now: float
    ) -> list[ActiveLease]:
        """Grant leases of the oldest waiting tasks, up to the share of this reader."""
        share = math.ceil(len(self._queue) / len(self._readers))
        granted: list[ActiveLease] = []
        skipped = []
        while self._queue and len(granted) < min(wanted, share):
            number = heapq.heappop(self._queue)
            task = self._tasks.get(number)
            if task is None:
                continue
            if number in known:
                skipped.append(number)
            else:
                task.waits = False
                granted.append(self._lease(task, reader, now))
        for number in skipped:
            heapq.heappush(self._queue, number)
        return granted

    def _hedge(self, reader: ReaderRecord, known: set[int], now: float) -> ActiveLease | None:
        """Grant an idle reader a second lease of a chunk with which another reader is slow."""
        limit = self._deadlines.hedge_after(len(self._readers))
        if limit is None or self._queue:
            return None
        for slow in self._busy.values():
            assert slow.current is not None
            if now - slow.began <= limit:
                break
            current = slow.current
            if current.isolated or now - slow.began <= limit * current.task.units:
                continue
            for lease in slow.leases.values():  # also those that wait after the slow one
                if len(lease.task.leases) == 1 and lease.task.number not in known:
                    self.counters.hedged += 1
                    return self._lease(lease.task, reader, now, hedge=True)
        return None

    def _lease(
        self, task: ChunkTask, reader: ReaderRecord, now: float, *, hedge: bool = False
    ) -> ActiveLease:
        self._last_epoch += 1
        isolated = task.num_deaths >= _DEATHS_TO_ISOLATE
        lease = ActiveLease(task, self._last_epoch, reader, now, isolated, hedge)
        task.leases[lease.epoch] = reader.leases[task.number] = lease
        return lease

    def _end(self, lease: ActiveLease) -> None:
        """Make a lease invalid."""
        reader = lease.reader
        del lease.task.leases[lease.epoch]
        del reader.leases[lease.task.number]
        if reader.current is lease:
            reader.current = None
            self._busy.pop(reader.name, None)

    def _reissue(self, lease: ActiveLease, reason: str) -> None:
        self._end(lease)
        self.counters.reissued[reason] += 1
        self._enqueue(lease.task)

    def _recrop(self, task: ChunkTask) -> None:
        task.holder = None
        self.counters.recropped += 1
        self._enqueue(task)

    def _enqueue(self, task: ChunkTask) -> None:
        """Let a task wait for a reader, unless it has a lease, or too many readers died over it."""
        if task.leases:
            return
        if task.num_deaths >= _DEATHS_TO_GIVE_UP:
            self.counters.given_up += 1
            self._close(task, readers_lost(task))
        else:
            task.waits = True
            heapq.heappush(self._queue, task.number)

    def _close(self, task: ChunkTask, error: BaseException | None = None) -> None:
        """Remove a task; an error becomes its result."""
        del self._tasks[task.number]
        for lease in list(task.leases.values()):
            self._end(lease)
        if task.holder is not None:
            task.holder.held.remove(task.number)
        if error is not None:
            self._decided[task.number] = error
