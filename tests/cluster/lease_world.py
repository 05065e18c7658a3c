"""Simulated world of a lease table: readers that die, hang, freeze and return, a lossy network.

One seed makes one world. The consumer stands for the sequencer and the trainers: it requests chunks
in order, takes their crops from the holders, and releases used chunks.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from cluster.errors import ReadersLost
from cluster.leases.lease_deadlines import LeaseConfig
from cluster.leases.lease_table import LeaseTable
from cluster.protocol.messages import ChunkHeader, FinishedLease, Lease, ReaderOrders, ReaderReport
from shards.records import Chunk, ShardInfo, Turn

SHARD = ShardInfo("file:///shard.tar", 1 << 20, "1")
CONFIG = LeaseConfig(
    min_deadline=3.0,
    max_deadline=12.0,
    isolated_seconds=20.0,
    silence_seconds=4.0,
    poll_seconds=0.2,
)
_WINDOW = 5
_AHEAD = 3


def turn(number: int) -> Turn:
    """Return chunk `number` of the only shard; it holds 1 to 4 samples."""
    return Turn(Chunk(0, number * 100, number * 100 + 100), 0)


def header(of: Turn, **changes: object) -> ChunkHeader:
    """Return the header that every reader must make of a turn."""
    size = of.chunk.start // 100 % 4 + 1
    offsets = np.arange(size, dtype=np.int64) * 512 + of.chunk.start
    made = ChunkHeader(
        of.chunk, of.epoch, offsets, np.ones(size, bool), (), 1000 * size, crop_seconds=0.3
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass(eq=False)
class Worker:
    """A reader that follows the protocol of `ReaderReport`, without a process."""

    name: str
    term: int
    leases: dict[int, Lease] = field(default_factory=dict)  # by task, in order
    finished: dict[int, FinishedLease] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    current_task: int | None = None
    leaves: bool = False
    alive: bool = True
    frozen: bool = False
    hung: bool = False

    def report(self) -> ReaderReport:
        return ReaderReport(
            reader=self.name,
            term=self.term,
            finished=tuple(self.finished.values()),
            current_task=self.current_task,
            waiting=tuple(task for task in self.leases if task != self.current_task),
            wanted=0 if self.leaves else 1 + _AHEAD - len(self.leases),
            held=tuple(self.held - set(self.finished)),
        )

    def apply(self, report: ReaderReport, orders: ReaderOrders) -> None:
        if orders.term < self.term:
            return
        if orders.term > self.term:
            self.term = orders.term
            self.leases, self.finished, self.current_task, self.hung = {}, {}, None, False
            self.held = set()
            return
        for finished in report.finished:
            self.finished.pop(finished.task, None)
        for task, epoch in orders.drop:
            if task in self.leases and self.leases[task].epoch <= epoch:
                self._forget(task)
        self.held -= set(orders.release)
        self.leaves |= orders.leave
        if self.leaves:
            self.leases = {
                task: self.leases[task] for task in self.leases if task == self.current_task
            }
        for lease in () if self.leaves else orders.leases:
            if lease.task not in self.finished:
                self.leases.setdefault(lease.task, lease)

    def _forget(self, task: int) -> None:
        del self.leases[task]
        if self.current_task == task:
            self.current_task, self.hung = None, False

    def begin(self) -> Lease | None:
        if self.current_task is None and self.leases:
            self.current_task = next(iter(self.leases))
            return self.leases[self.current_task]
        return None

    def finish(self) -> None:
        if self.current_task is not None and not self.hung:
            lease = self.leases.pop(self.current_task)
            self.current_task = None
            made = FinishedLease(lease.task, lease.epoch, header(lease.turn))
            self.finished[lease.task] = made
            self.held.add(lease.task)


class World:
    """One seeded sequence of events. `run` plays it and asserts the promises after each event."""

    def __init__(self, seed: int, *, num_tasks: int = 12) -> None:
        self.rng = Random(seed)
        self.now = self.rng.uniform(0, 1000)
        self.term = 1
        self.table = LeaseTable(1, CONFIG)
        self.num_tasks = num_tasks
        self.poison = {n for n in range(num_tasks) if self.rng.random() < 0.05}
        self.deadly = {n for n in self.poison if self.rng.random() < 0.3}
        self.workers: list[Worker] = []
        self.zombies: list[Worker] = []
        self.lost: set[str] = set()
        self.posted: list[ReaderReport] = []  # delivered again later
        self.num_made = 0
        self.done = 0  # chunks that were used
        self.numbers: dict[int, int] = {}  # tasks of this term: which chunk
        self.decided: dict[int, ChunkHeader | BaseException] = {}
        self.given: dict[tuple[str, int], int] = {}  # the newest epoch, by reader and task
        self.deaths: Counter[int] = Counter()
        self.seen: Counter[str] = Counter()
        self.num_wanted = self.rng.randint(1, 4)
        self.ask()

    def run(self, num_events: int = 120) -> None:
        for _ in range(num_events):
            self.step(calm=False)
        for _ in range(500 * self.num_tasks):
            if self.done == self.num_tasks:
                break
            self.step(calm=True)
        assert self.done == self.num_tasks, "a task starved"
        self.settle()

    def settle(self) -> None:
        """Check that all readers drop everything after the last chunk."""
        for _ in range(3):
            for worker in [*self.workers, *self.zombies]:
                worker.frozen = False
                if worker.alive:
                    self.deliver(worker, worker.report())
        holding = [worker for worker in self.workers if worker.alive and not worker.leaves]
        assert all(not (worker.held or worker.leases or worker.finished) for worker in holding)
        assert self.table.snapshot(self.now).num_held == 0

    def step(self, *, calm: bool) -> None:
        self.now += self.rng.expovariate(4.0)
        chance = self.rng.random()
        if not calm and chance < 0.12:
            self.trouble()
        elif chance < 0.5 and self.workers:
            self.work(self.rng.choice(self.workers))
        elif chance < 0.8 and self.workers:
            self.talk(self.rng.choice(self.workers), calm=calm)
        elif chance < 0.86 and self.zombies:
            self.haunt(self.rng.choice(self.zombies))
        elif chance < 0.93:
            self.consume()
        else:
            self.control()

    def trouble(self) -> None:
        """Let one fault happen, or a false alarm."""
        what = self.rng.choice(["die", "hang", "freeze", "drain", "restart", "away", "missing"])
        self.seen[what] += 1
        if what == "restart" and self.rng.random() < 0.3:
            self.restart()
        elif what == "away":
            self.now += self.rng.uniform(0, 60)  # Control was stopped, and nobody else
        elif self.workers:
            worker = self.rng.choice(self.workers)
            if what == "die":
                worker.alive = False
            elif what == "hang":
                worker.hung = worker.current_task is not None
            elif what == "freeze":
                worker.frozen = True
            elif what == "drain" and len(self.workers) > 1:
                self.table.drain(worker.name)
            elif what == "missing" and self.numbers:
                self.table.missing(self.rng.choice(list(self.numbers)), worker.name)

    def restart(self) -> None:
        """Start a new Control; unused chunks are requested again."""
        self.term += 1
        self.table = LeaseTable(self.term, CONFIG)
        self.numbers, self.decided, self.deaths = {}, {}, Counter()
        # It does not know which readers the old one gave up, and may use them.
        self.workers += self.zombies
        self.zombies, self.lost = [], set()
        for worker in self.workers:
            self.table.expect(worker.name, self.now)
        self.ask()

    def work(self, worker: Worker) -> None:
        if not worker.alive or worker.frozen:
            return
        if worker.current_task is not None:
            worker.finish()
        lease = worker.begin()
        if lease is None:
            return
        number = lease.turn.chunk.start // 100
        kills = number in (self.deadly if lease.isolated else self.poison)
        if kills and worker.term == self.term:
            worker.alive = False
            self.seen["poisoned"] += 1

    def talk(self, worker: Worker, *, calm: bool) -> None:
        """Send a report; it, its answer, or both may get lost, or the report arrives twice."""
        if not worker.alive or worker.frozen:
            return
        fate = 1.0 if calm else self.rng.random()
        if fate < 0.1:
            return
        report = worker.report()
        if fate < 0.2:
            self.posted.append(report)
        if fate < 0.3:
            self.exchange(report)
        else:
            self.deliver(worker, report)
        if self.posted and self.rng.random() < 0.3:
            self.exchange(self.posted.pop(self.rng.randrange(len(self.posted))))

    def deliver(self, worker: Worker, report: ReaderReport) -> None:
        orders = self.exchange(report)
        worker.apply(report, orders)

    def exchange(self, report: ReaderReport) -> ReaderOrders:
        """Give a report to the table, and check what it decides."""
        before = self.table.holders(self.numbers)
        orders = self.table.exchange(report, self.now)
        after = self.table.holders(self.numbers)
        fenced = report.reader in self.lost or report.term != self.term
        results = {(finished.task, finished.epoch) for finished in report.finished}
        for task in after:
            if after[task] != before.get(task):
                assert task not in before, "a second holder"
                assert after[task] == report.reader and not fenced
                assert (task, self.given[report.reader, task]) in results, "by a fenced lease"
        assert not (fenced and orders.leases)
        self.given.update({(report.reader, lease.task): lease.epoch for lease in orders.leases})
        for task in orders.release:
            assert after.get(task) != report.reader, "told to drop needed crops"
        self.learn()
        return orders

    def haunt(self, zombie: Worker) -> None:
        """Let a reader that was given up work and report as before."""
        zombie.frozen = zombie.hung = False
        zombie.finish()
        zombie.begin()
        if zombie.finished:
            self.seen["zombie"] += 1
        self.deliver(zombie, zombie.report())
        if zombie.leaves:
            self.zombies.remove(zombie)

    def learn(self) -> None:
        for task, result in self.table.results():
            failed = isinstance(result, BaseException)
            assert task in self.numbers and (failed or task not in self.decided), "decided twice"
            self.decided[task] = result
            if failed:
                assert isinstance(result, ReadersLost) and self.deaths[task] >= 4
                self.seen["given up"] += 1
            else:
                assert result.chunk == turn(self.numbers[task]).chunk

    def ask(self) -> None:
        """Request chunks up to the window."""
        while len(self.numbers) < _WINDOW and self.done + len(self.numbers) < self.num_tasks:
            number = self.done + len(self.numbers)
            self.numbers[self.table.add_task(turn(number), SHARD)] = number

    def consume(self) -> None:
        """Use the next chunk, if a reader has its crops, or if it was given up."""
        if not self.numbers:
            return
        task = next(iter(self.numbers))
        result = self.decided.get(task)
        holder = self.table.holders([task]).get(task)
        if result is None or (holder is None and not isinstance(result, BaseException)):
            return
        if holder is not None:
            assert holder not in self.lost
            worker = next((w for w in self.workers if w.name == holder and w.alive), None)
            if worker is None or (worker.term == self.term and task not in worker.held):
                self.table.missing(task, holder)
                self.seen["missed"] += 1
                return
            if worker.frozen or worker.term != self.term:
                return
        del self.numbers[task]
        self.decided.pop(task)
        self.table.release([task])
        self.done += 1
        self.ask()

    def control(self) -> None:
        """Tick: give up dead, silent and slow readers, and replace them."""
        gone = [worker for worker in self.workers if not worker.alive]
        for worker in gone[: self.rng.randint(0, 2)]:
            self.give_up(worker.name, "died")
        for name in self.table.expired(self.now):
            self.give_up(name, "hung")
        for name in self.table.silent(self.now):
            self.give_up(name, "silent")
        for worker in list(self.workers):
            if worker.leaves and not (worker.held or worker.leases or worker.finished):
                self.give_up(worker.name, "left")
        while sum(not worker.leaves for worker in self.workers) < self.num_wanted:
            self.num_made += 1
            self.workers.append(Worker(f"r{self.num_made}", self.term))
            self.table.expect(self.workers[-1].name, self.now)
        self.learn()

    def give_up(self, name: str, reason: str) -> None:
        self.seen[reason] += 1
        worker = next((w for w in self.workers if w.name == name), None)
        if worker is not None:
            self.workers.remove(worker)
            if worker.alive and self.rng.random() < 0.7:
                self.zombies.append(worker)  # the kill did not arrive
        running = {lease.task for lease in self.table.snapshot(self.now).oldest
                   if lease.reader == name}  # fmt: skip
        self.deaths.update(running)
        self.lost.add(name)
        self.table.lost(name, self.now, reason)  # type: ignore[arg-type]
        self.learn()
