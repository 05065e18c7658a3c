"""Sequencer: turns chunk headers into batch plans, in the one order of the stream.

    Order --turns--> LeaseTable --leases--> readers --headers--> LeaseTable --> slots --> BatchPlans

The next sample is decided as in a single process, by `shards.stream.sample_slots`. The crops stay
with the readers until every row of them was trained on. Plans are made a few steps ahead.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cluster.leases.lease_table import LeaseTable
from cluster.protocol.messages import BatchPlan, ChunkHeader, Plans
from shards.errors import ConfigError, StreamStopped
from shards.records import Cursor, ShardInfo, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stream.journal import Journal
from shards.stream.lookahead import LookaheadBounds
from shards.stream.order import Order
from shards.stream.sample_slots import KeptSample, LeftOut, OrderedSlots, SlotSpec
from shards.stream.stream_config import StreamConfig

# A reader crops one chunk and reads the next ones meanwhile; with fewer it would wait for leases.
_CHUNKS_PER_READER = 4
_BYTES_PER_READER = 256 << 20
# Planned batches that were not trained on yet may take this part of what readers may hold.
_PLANNED_SHARE = 4
# One batch is trained on while the next one travels.
_MIN_STEPS_AHEAD = 2
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class SequencerConfig:
    """Limits: plans at most `steps_ahead` of the training, chunks for `num_readers` readers.

    Fewer steps are planned if they would take over a quarter of the bytes that readers may hold.
    """

    num_readers: int
    steps_ahead: int = 16

    def __post_init__(self) -> None:
        if self.steps_ahead < _MIN_STEPS_AHEAD:
            raise ConfigError(
                f"steps_ahead={self.steps_ahead}; it must be at least {_MIN_STEPS_AHEAD}: a "
                "batch travels while another one is trained on"
            )

    def max_bytes(self, stream: StreamConfig) -> int:
        """Return the bytes that all readers together may hold."""
        return max(stream.max_bytes, _BYTES_PER_READER * self.num_readers)

    def bounds(self, stream: StreamConfig, chunks_per_block: int) -> LookaheadBounds:
        """Return how far ahead of the plans chunks are requested."""
        usual = stream.lookahead_bounds
        max_bytes = self.max_bytes(stream)
        num_chunks = _CHUNKS_PER_READER * self.num_readers
        return LookaheadBounds(
            max_bytes=max_bytes - max_bytes // _PLANNED_SHARE,
            max_slots=usual.max_slots,
            num_blocks=max(usual.num_blocks, 1 + math.ceil(num_chunks / chunks_per_block)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SequencerSpec:
    """The data of a run, its order, and the limits of planning."""

    shards: Sequence[ShardInfo]
    order: Order
    stream: StreamConfig
    admission: AdmissionConfig
    config: SequencerConfig
    journal: Journal


class _RequestedChunk(Future[ChunkHeader]):
    """Future of the header of a chunk that was requested as task `task`."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task
        self.row_bytes = 0.0


class Sequencer:
    """Plans batches from `cursor`, the position after `step` batches, in a thread of its own.

    Use as a context: at its end the table holds no task, so that another sequencer can begin
    anywhere with the same table. `on_change` is called from that thread after new tasks, new plans
    or an end. Every method may be called from any thread.
    """

    def __init__(
        self,
        table: LeaseTable,
        spec: SequencerSpec,
        cursor: Cursor | None = None,
        step: int = 0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._table, self._spec, self._on_change = table, spec, on_change
        self._max_planned_bytes = spec.config.max_bytes(spec.stream) // _PLANNED_SHARE
        self._changed = threading.Condition()  # guards the fields below, and the table
        self._requested: dict[int, _RequestedChunk] = {}
        self._results: dict[int, _RequestedChunk] = {}  # by the id of the header, kept alive here
        self._used: deque[tuple[int, int]] = deque()  # the last step of a task, and the task
        self._plans: deque[tuple[BatchPlan, int]] = deque()  # with the bytes of the crops
        self._planned_bytes = 0
        self._committed = step
        self._error: BaseException | None = None  # ended the stream after the last plan
        self._fatal: BaseException | None = None  # makes the present plans invalid
        self._closed = False
        self._forming = _FormingBatch(step)
        self._slots: OrderedSlots[ChunkHeader] = OrderedSlots(
            SlotSpec(
                order=spec.order,
                admission=spec.admission,
                bounds=spec.config.bounds(spec.stream, spec.order.config.chunks_per_block),
                batch_size=spec.stream.batch_size,
                cursor=cursor,
                journal=spec.journal,
            ),
            self._submit,
            stop=lambda: self._closed,
            forget=self._forget,
        )
        self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)

    @contextmanager
    def leases(self) -> Iterator[LeaseTable]:
        """Lend the table to one caller; afterwards the sequencer takes its results."""
        with self._changed:
            yield self._table
            results = self._table.results()
            for task, result in results:
                self._settle(task, result)
            if results:
                self._changed.notify_all()

    def plans(self, first: int, count: int) -> Plans:
        """Return the present plans among `count` steps from `first` on, and the crops' holders.

        Raises the error that ended the stream, if no plan follows.
        """
        with self._changed:
            if self._fatal is not None:
                raise self._fatal
            found = tuple(p for p, _ in self._plans if first <= p.step < first + count)
            if not found and self._error is not None and first >= self._forming.step:
                raise self._error
            tasks = {int(task) for plan in found for task in np.unique(plan.tasks)}
            return Plans(self._table.term, found, self._table.holders(tasks))

    def commit(self, step: int) -> None:
        """Drop the batches before `step`: readers may release their crops."""
        with self._changed:
            self._committed = max(self._committed, step)
            while self._plans and self._plans[0][0].step < self._committed:
                self._planned_bytes -= self._plans.popleft()[1]
            self._release()
            self._changed.notify_all()

    @property
    def num_planned(self) -> int:
        """Steps that are planned, counted from the first step of the run."""
        with self._changed:
            return self._forming.step

    def __enter__(self) -> "Sequencer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            self._table.forget_all()

    def _run(self) -> None:
        try:
            for sample in self._slots:
                self._forming.add(self._results[id(sample.result)], sample)
                if len(self._forming) == self._spec.stream.batch_size:
                    self._offer(self._slots.cursor(), self._slots.take_left_out())
                    self._wait_for_room()
        except StreamStopped:
            return
        except Exception as error:  # `plans` raises it
            with self._changed:
                self._error = error
            self._on_change()

    def _submit(self, turn: Turn) -> Future[ChunkHeader]:
        with self._changed:
            task = self._table.add_task(turn, self._spec.shards[turn.chunk.shard])
            chunk = self._requested[task] = _RequestedChunk(task)
        self._on_change()
        return chunk

    def _settle(self, task: int, result: ChunkHeader | BaseException) -> None:
        chunk = self._requested.pop(task, None)
        if chunk is None:
            # It had a result, its crops were lost, and could not be made again.
            self._fatal = result if isinstance(result, BaseException) else self._fatal
        elif isinstance(result, BaseException):
            chunk.set_exception(result)
        else:
            chunk.row_bytes = result.num_bytes / max(1, int(result.kept.sum()))
            self._results[id(result)] = chunk
            chunk.set_result(result)

    def _offer(self, cursor: Cursor, left_out: LeftOut) -> None:
        plan, num_bytes = self._forming.plan(cursor, left_out)
        with self._changed:
            self._plans.append((plan, num_bytes))
            self._planned_bytes += num_bytes
            self._forming = _FormingBatch(plan.step + 1)
        self._on_change()

    def _wait_for_room(self) -> None:
        """Request chunks while there is room for them, until one more batch may be planned."""
        while True:
            self._slots.extend()
            with self._changed:
                if self._closed:
                    raise StreamStopped("the sequencer was closed")
                if self._has_room():
                    return
                self._changed.wait(_POLL_SECONDS)

    def _has_room(self) -> bool:
        ahead = self._forming.step - self._committed
        if ahead < _MIN_STEPS_AHEAD:
            return True
        next_bytes = self._plans[-1][1] if self._plans else 0
        fits = self._planned_bytes + next_bytes <= self._max_planned_bytes
        return ahead < self._spec.config.steps_ahead and fits

    def _forget(self, futures: Sequence[Future[ChunkHeader]]) -> None:
        """Take chunks that fill no further slot: their samples are in plans, or in none."""
        with self._changed:
            last = self._forming.step - (len(self._forming) == 0)
            for chunk in futures:
                assert isinstance(chunk, _RequestedChunk)
                if chunk.cancel():
                    del self._requested[chunk.task]
                    self._table.release([chunk.task])
                elif chunk.exception() is None:
                    del self._results[id(chunk.result())]
                    self._used.append((last, chunk.task))
            self._release()

    def _release(self) -> None:
        done = []
        while self._used and self._used[0][0] < self._committed:
            done.append(self._used.popleft()[1])
        if done:
            self._table.release(done)


class _FormingBatch:
    """Batch plan being filled."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._labels: list[int] = []
        self._num_bytes = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, source: _RequestedChunk, sample: KeptSample[ChunkHeader]) -> None:
        chunk, epoch = sample.result.chunk, sample.result.epoch
        self._rows.append((source.task, sample.row, epoch, chunk.shard, sample.offset))
        if sample.result.labels is not None:
            self._labels.append(int(sample.result.labels[sample.row]))
        self._num_bytes += source.row_bytes

    def plan(self, cursor: Cursor, left_out: LeftOut) -> tuple[BatchPlan, int]:
        """Return the batch, and the bytes of its crops."""
        columns = np.array(self._rows, np.int64)
        plan = BatchPlan(
            step=self.step,
            ids=np.ascontiguousarray(columns[:, 3:]),
            epochs=np.ascontiguousarray(columns[:, 2]),
            tasks=np.ascontiguousarray(columns[:, 0]),
            rows=np.ascontiguousarray(columns[:, 1]),
            cursor=cursor,
            rejects=left_out.rejects,
            num_unselected=left_out.num_unselected,
            labels=np.array(self._labels, np.int64) if self._labels else None,
        )
        return plan, int(self._num_bytes)
