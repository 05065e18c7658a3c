"""The data path without trainers: a small Control, real readers, and feeds of a test.

Sequencer, leases, readers and feeds are the real ones. This Control only connects them, and the
test reports losses to it.
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import ray

from cluster.control.sequencer import Sequencer, SequencerConfig, SequencerSpec
from cluster.leases.lease_deadlines import LeaseConfig
from cluster.leases.lease_table import LeaseTable
from cluster.protocol.broadcast_event import BroadcastEvent
from cluster.protocol.messages import ChunkHeader, Plans, ReaderOrders, ReaderReport
from cluster.readers.reader_actor import Reader
from cluster.readers.reader_config import ReaderConfig
from cluster.trainers.batch_feed import BatchFeed, FeedConfig
from shards.crops.sample_cropper import CropJob
from shards.records import Cursor
from shards.samples.admission_config import AdmissionConfig
from shards.stream.batch_stream import build_order
from shards.stream.journal import Journal, JournalEntry
from shards.stream.manifest import Manifest
from shards.stream.order import Order
from shards.stream.stream_config import StreamConfig

WAIT = 200.0  # a busy machine starts processes slowly
_names = itertools.count()


@ray.remote(num_cpus=0, max_concurrency=1000)
class StandIn:
    """A Control for readers and feeds."""

    def __init__(
        self,
        manifest: Manifest,
        stream: StreamConfig,
        admission: AdmissionConfig,
        config: SequencerConfig,
        **start: Any,
    ) -> None:
        self._arguments = manifest, stream, admission, config
        self._sequencer: Any = None
        self._changed: BroadcastEvent | None = None
        self._begin(**start)

    async def begin(self, **start: Any) -> None:
        """Act like a new Control, without starting a process."""
        self._begin(**start)

    def _begin(
        self,
        *,
        order: Order | None = None,
        cursor: Cursor | None = None,
        step: int = 0,
        term: int = 1,
        leases: LeaseConfig | None = None,
        entries: Sequence[JournalEntry] = (),
    ) -> None:
        manifest, stream, admission, config = self._arguments
        order = order or build_order(manifest, stream, 0)
        self._journal = Journal(manifest.digest, order.digest, entries)
        if self._sequencer is not None:
            self._sequencer.__exit__()
        spec = SequencerSpec(
            shards=manifest.shards,
            order=order,
            stream=stream,
            admission=admission,
            config=config,
            journal=self._journal,
        )
        self._sequencer = Sequencer(LeaseTable(term, leases), spec, cursor, step, self._wake)
        self._sequencer.__enter__()
        self._max_held = 0
        self._held: dict[str, int] = {}
        self._busy: dict[str, float] = {}
        self._tasks: set[int] = set()
        self._finished: Counter[str] = Counter()
        self._num_exchanges = 0

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def exchange(self, report: ReaderReport) -> ReaderOrders:
        self._held[report.reader] = report.held_bytes
        self._busy[report.reader] = report.busy_seconds
        self._num_exchanges += 1
        for finished in report.finished:
            if finished.header is not None and finished.task not in self._tasks:
                self._tasks.add(finished.task)
                self._finished.update(_totals(finished.header))
        self._max_held = max(self._max_held, sum(self._held.values()))
        with self._sequencer.leases() as table:
            return table.exchange(report, time.monotonic())

    async def plans(self, member: str, first: int, count: int) -> Plans:
        assert member
        self._changed = self._changed or BroadcastEvent()
        until = time.monotonic() + 1
        while not (plans := self._sequencer.plans(first, count)).plans:
            if time.monotonic() > until:
                break
            await self._changed.wait(until - time.monotonic())
        return plans

    async def missing(self, member: str, task: int, reader: str) -> None:
        assert member
        with self._sequencer.leases() as table:
            table.missing(task, reader)

    async def committed(self, step: int) -> None:
        self._sequencer.commit(step)

    async def expect(self, reader: str) -> None:
        with self._sequencer.leases() as table:
            table.expect(reader, time.monotonic())

    async def lost(self, reader: str) -> None:
        self._held.pop(reader, None)
        with self._sequencer.leases() as table:
            table.lost(reader, time.monotonic())

    async def drain(self, reader: str) -> None:
        with self._sequencer.leases() as table:
            table.drain(reader)

    async def given_up(self) -> list[str]:
        """Return readers that hang or are silent, to be killed."""
        with self._sequencer.leases() as table:
            now = time.monotonic()
            return [*table.expired(now), *table.silent(now)]

    async def finished(self) -> Mapping[str, float]:
        """Return totals of the chunks that readers finished."""
        return self._finished

    async def status(self) -> Mapping[str, Any]:
        with self._sequencer.leases() as table:
            leases = table.snapshot(time.monotonic())
            counters = table.counters
            holders = Counter(table.holders(self._tasks).values())
        return {
            "planned": self._sequencer.num_planned,
            "pid": os.getpid(),
            "cpu_seconds": time.process_time(),
            "num_held": leases.num_held,
            "held_bytes": sum(self._held.values()),
            "held_by": holders,
            "max_held": self._max_held,
            "busy_seconds": sum(self._busy.values()),
            "finished": self._finished,
            "exchanges": self._num_exchanges,
            "counters": counters,
            "entries": self._journal.entries,
        }


def _totals(header: ChunkHeader) -> Mapping[str, Any]:
    return {
        "images": int(header.kept.sum()),
        "rejects": len(header.rejects),
        "bytes": header.num_bytes,
        "read_seconds": header.read_seconds,
        "crop_seconds": header.crop_seconds,
    }


class DataPath:
    """Control and its readers on a running Ray. Use as a context."""

    def __init__(
        self,
        manifest: Manifest,
        job: CropJob,
        stream: StreamConfig,
        num_readers: int = 2,
        reader_config: ReaderConfig | None = None,
        steps_ahead: int = 4,
        **control: Any,
    ) -> None:
        self.name = f"control-{next(_names)}"
        self._job, self._reader_config = ray.put(job), reader_config
        config = SequencerConfig(num_readers=num_readers, steps_ahead=steps_ahead)
        self._arguments = manifest, stream, job.admission, config
        self.control = self._control(**control)
        self.readers: dict[str, Any] = {}
        self._numbers = itertools.count()
        for _ in range(num_readers):
            self.add_reader()

    def _control(self, **options: Any) -> Any:
        control = StandIn.options(name=self.name).remote(  # type: ignore[attr-defined]
            *self._arguments, **options
        )
        return control

    def replace_control(self, **options: Any) -> None:
        """Kill Control, and create another one of the same name."""
        ray.kill(self.control)
        deadline = time.monotonic() + WAIT
        while True:
            try:
                self.control = self._control(**options)
                return
            except ValueError:  # the name is not free yet
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def add_reader(self) -> str:
        name = f"{self.name}-r{next(self._numbers)}"
        reader = Reader.options(name=name).remote(  # type: ignore[attr-defined]
            name, self.name, self._job, self._reader_config
        )
        self.readers[name] = reader, reader.start.remote()
        return name

    def started(self, name: str) -> Any:
        """Wait for a reader, and return its location; Control expects its reports then."""
        found = ray.get(self.readers[name][1], timeout=WAIT)
        self.tell("expect", name)
        return found

    def lose(self, name: str) -> None:
        """Kill a reader and report the loss to Control."""
        ray.kill(self.readers.pop(name)[0])
        self.tell("lost", name)

    def tell(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self.control, method).remote(*arguments), timeout=WAIT)

    def feed(self, member: str = "t0", **config: Any) -> BatchFeed:
        return BatchFeed(self.name, member, FeedConfig(**config))

    def wait(self, condition: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Wait for a condition on the status of Control, and return the status."""
        deadline = time.monotonic() + WAIT
        while not condition(status := self.tell("status")):
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader, _ in self.readers.values():
            ray.kill(reader)
        ray.kill(self.control)
