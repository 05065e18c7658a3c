"""Headers become batches by reference: which rows of which tasks, in the one order that they have.

    Order ──turns──> LeaseTable ──leases──> readers ──headers──> LeaseTable ──> slots ──> BatchPlans

What comes next is decided as in a single process, by `shards.stream.sample_slots`; the crops stay where they were
made until every row of them was trained on. Plans are formed a few steps ahead of that.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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

# A reader crops one chunk and reads the next ones meanwhile; with fewer it would wait for orders.
_CHUNKS_PER_READER = 4
_BYTES_PER_READER = 256 << 20
# Of the bytes that readers may hold, those of batches that were planned and not trained on yet.
_PLANNED_SHARE = 4
# One batch is trained on while the next one travels.
_MIN_STEPS_AHEAD = 2
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class SequencerConfig:
    """How far ahead: `steps_ahead` of what was trained on, work for `num_readers` at most.

    Fewer steps where those would take over a quarter of what readers may hold.
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
        """What all readers may hold together."""
        return max(stream.max_bytes, _BYTES_PER_READER * self.num_readers)

    def bounds(self, stream: StreamConfig, chunks_per_block: int) -> LookaheadBounds:
        """How far ahead of the plans chunks are asked for."""
        usual = stream.lookahead_bounds
        max_bytes = self.max_bytes(stream)
        num_chunks = _CHUNKS_PER_READER * self.num_readers
        return LookaheadBounds(
            max_bytes=max_bytes - max_bytes // _PLANNED_SHARE,
            max_slots=usual.max_slots,
            num_blocks=max(usual.num_blocks, 1 + math.ceil(num_chunks / chunks_per_block)),
        )


class _Asked(Future[ChunkHeader]):
    """What was asked for: the header of the chunk of a task."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task
        self.row_bytes = 0.0


class Sequencer:
    """Plans batches from `cursor`, the place behind `step` batches, on a thread of its own.

    Use as a context: at its end the table knows no task any more, so that another one can begin
    anywhere with the same table. `on_change` is called from that thread when there are new tasks,
    new plans or an end. Every method may be called from any thread.
    """

    def __init__(
        self,
        table: LeaseTable,
        shards: Sequence[ShardInfo],
        order: Order,
        stream: StreamConfig,
        admission: AdmissionConfig,
        config: SequencerConfig,
        *,
        journal: Journal | None = None,
        cursor: Cursor | None = None,
        step: int = 0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._table, self._shards, self._on_change = table, shards, on_change
        self._batch_size, self._config = stream.batch_size, config
        self._max_planned = config.max_bytes(stream) // _PLANNED_SHARE
        self._changed = threading.Condition()  # guards all that follows, and the table
        self._under_way: dict[int, _Asked] = {}
        self._made: dict[int, _Asked] = {}  # by the identity of the header, which lives as long
        self._passed: deque[tuple[int, int]] = deque()  # the last step of a task, and the task
        self._plans: deque[tuple[BatchPlan, int]] = deque()  # and the bytes of its crops
        self._planned_bytes = 0
        self._committed = step
        self._error: BaseException | None = None  # behind the last plan
        self._fatal: BaseException | None = None  # in the middle of them
        self._closed = False
        self._forming = _Forming(step)
        self._slots: OrderedSlots[ChunkHeader] = OrderedSlots(
            SlotSpec(
                order=order,
                admission=admission,
                bounds=config.bounds(stream, order.config.chunks_per_block),
                batch_size=stream.batch_size,
                cursor=cursor,
                journal=journal,
            ),
            self._submit,
            stop=lambda: self._closed,
            forget=self._forget,
        )
        self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)

    @contextmanager
    def leases(self) -> Iterator[LeaseTable]:
        """The table, which nobody else touches meanwhile; what it decided is then gone on with."""
        with self._changed:
            yield self._table
            results = self._table.results()
            for task, result in results:
                self._settle(task, result)
            if results:
                self._changed.notify_all()

    def plans(self, first: int, count: int) -> Plans:
        """What is planned of `count` batches from step `first` on, and who holds their crops.

        Raises what ended the stream, when nothing more will be planned.
        """
        with self._changed:
            if self._fatal is not None:
                raise self._fatal
            found = tuple(p for p, _ in self._plans if first <= p.step < first + count)
            if not found and self._error is not None and first >= self._forming.step:
                raise self._error
            tasks = {int(task) for plan in found for task in np.unique(plan.tasks)}
            return Plans(self._table.term, found, self._table.holders(tasks))

    def committed(self, step: int) -> None:
        """Nobody will ask for batches before `step` again: their crops may go."""
        with self._changed:
            self._committed = max(self._committed, step)
            while self._plans and self._plans[0][0].step < self._committed:
                self._planned_bytes -= self._plans.popleft()[1]
            self._release()
            self._changed.notify_all()

    def status(self) -> Mapping[str, int]:
        """How far planning and training are, and the bytes of crops in the plans between them."""
        with self._changed:
            return {
                "committed": self._committed,
                "planned": self._forming.step,
                "planned_bytes": self._planned_bytes,
            }

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
            for taken in self._slots:
                self._forming.add(self._made[id(taken.result)], taken)
                if len(self._forming) == self._batch_size:
                    self._offer(self._slots.cursor(), self._slots.take_left_out())
                    self._wait_for_room()
        except StreamStopped:
            return
        except Exception as error:  # whoever asks for plans is told of it
            with self._changed:
                self._error = error
            self._on_change()

    def _submit(self, turn: Turn) -> Future[ChunkHeader]:
        with self._changed:
            asked = _Asked(self._table.ask(turn, self._shards[turn.chunk.shard]))
            self._under_way[asked.task] = asked
        self._on_change()
        return asked

    def _settle(self, task: int, result: ChunkHeader | BaseException) -> None:
        asked = self._under_way.pop(task, None)
        if asked is None:
            # It was decided before, its crops were lost, and could not be made again.
            self._fatal = result if isinstance(result, BaseException) else self._fatal
        elif isinstance(result, BaseException):
            asked.set_exception(result)
        else:
            asked.row_bytes = result.num_bytes / max(1, int(result.kept.sum()))
            self._made[id(result)] = asked
            asked.set_result(result)

    def _offer(self, cursor: Cursor, decided: LeftOut) -> None:
        plan, num_bytes = self._forming.plan(cursor, decided)
        with self._changed:
            self._plans.append((plan, num_bytes))
            self._planned_bytes += num_bytes
            self._forming = _Forming(plan.step + 1)
        self._on_change()

    def _wait_for_room(self) -> None:
        """Ask for chunks as there is room for them, until one more batch may be planned."""
        while True:
            self._slots.extend()
            with self._changed:
                if self._closed:
                    raise StreamStopped("nobody wants plans any more")
                if self._has_room():
                    return
                self._changed.wait(_POLL_SECONDS)

    def _has_room(self) -> bool:
        ahead = self._forming.step - self._committed
        if ahead < _MIN_STEPS_AHEAD:
            return True
        next_bytes = self._plans[-1][1] if self._plans else 0
        fits = self._planned_bytes + next_bytes <= self._max_planned
        return ahead < self._config.steps_ahead and fits

    def _forget(self, futures: Sequence[Future[ChunkHeader]]) -> None:
        """These chunks are in plans with all that they have, or in none at all."""
        with self._changed:
            last = self._forming.step - (len(self._forming) == 0)
            for asked in futures:
                assert isinstance(asked, _Asked)
                if asked.cancel():
                    del self._under_way[asked.task]
                    self._table.release([asked.task])
                elif asked.exception() is None:
                    del self._made[id(asked.result())]
                    self._passed.append((last, asked.task))
            self._release()

    def _release(self) -> None:
        done = []
        while self._passed and self._passed[0][0] < self._committed:
            done.append(self._passed.popleft()[1])
        if done:
            self._table.release(done)


class _Forming:
    """A batch being filled, by reference."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._labels: list[int] = []
        self._num_bytes = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, asked: _Asked, taken: KeptSample[ChunkHeader]) -> None:
        chunk, epoch = taken.result.chunk, taken.result.epoch
        self._rows.append((asked.task, taken.row, epoch, chunk.shard, taken.offset))
        if taken.result.labels is not None:
            self._labels.append(int(taken.result.labels[taken.row]))
        self._num_bytes += asked.row_bytes

    def plan(self, cursor: Cursor, decided: LeftOut) -> tuple[BatchPlan, int]:
        """The batch, and the bytes of its crops."""
        columns = np.array(self._rows, np.int64)
        plan = BatchPlan(
            step=self.step,
            ids=np.ascontiguousarray(columns[:, 3:]),
            epochs=np.ascontiguousarray(columns[:, 2]),
            tasks=np.ascontiguousarray(columns[:, 0]),
            rows=np.ascontiguousarray(columns[:, 1]),
            cursor=cursor,
            rejects=decided.rejects,
            num_unselected=decided.num_unselected,
            labels=np.array(self._labels, np.int64) if self._labels else None,
        )
        return plan, int(self._num_bytes)
