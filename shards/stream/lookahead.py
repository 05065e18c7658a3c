"""Lookahead: which chunks are requested before they are needed.

A block can be mixed when all its chunks have arrived. The block that the next batch needs is always
requested; later blocks are requested as far as the bounds allow. A bound on blocks or batches alone
would stall the stream if blocks are small or most samples are rejected. A bound on bytes alone
would not limit small crops, or chunks without crops.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shards.errors import StreamStopped
from shards.records import ChunkResult, Turn

_POLL_SECONDS = 0.5

R = TypeVar("R", bound=ChunkResult)
Submit = Callable[[Turn], Future[R]]
Plan = Callable[[int], list[Turn]]
Stop = Callable[[], bool]
Forget = Callable[[Sequence[Future[R]]], None]


def never() -> bool:
    """Return False: never stop."""
    return False


def ignore(_: Sequence[Future[R]]) -> None:
    """Do nothing with futures that are not needed any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookaheadBounds:
    """Bounds: `max_bytes` of results held or in progress, `max_slots` samples in complete blocks,
    and `num_blocks` incomplete blocks."""

    max_bytes: int
    max_slots: int
    num_blocks: int


@dataclass(slots=True, eq=False)
class Block(Generic[R]):
    """A block in progress: its turns in canonical order, and the futures of requested ones.

    `waits` holds the futures that are not counted in `num_bytes` and `num_slots` yet.
    """

    number: int
    turns: list[Turn]
    futures: list[Future[R]] = field(default_factory=list)
    waits: dict[Future[R], None] = field(default_factory=dict)
    num_bytes: int = 0
    num_slots: int = 0

    @property
    def complete(self) -> bool:
        return len(self.futures) == len(self.turns) and not self.waits


class Lookahead(Generic[R]):
    """Blocks from number `block` on, in canonical order, with all results that are still needed.

    `plan(number)` returns the turns of a block; `submit(turn)` must return a future of the result
    of its chunk. Both are called from the thread that uses this object and must not block long.
    `stop()` is polled during a wait, which raises StreamStopped if it returns True.
    `forget(futures)` is called with futures that will not be read again.
    """

    def __init__(
        self,
        plan: Plan,
        submit: Submit[R],
        bounds: LookaheadBounds,
        block: int,
        stop: Stop = never,
        forget: Forget[R] = ignore,
    ) -> None:
        self._plan, self._submit, self._bounds = plan, submit, bounds
        self._stop, self._forget = stop, forget
        self._blocks: deque[Block[R]] = deque()
        self._next_block = block
        # Filled by callbacks of the futures, because polling all of them would be slow.
        self._arrived: deque[tuple[Block[R], Future[R]]] = deque()
        self._num_waiting = self._num_bytes = 0  # of all blocks
        self._num_incomplete = self._slots_ahead = 0  # blocks, and the slots of complete ones
        self._dropped: dict[Future[R], None] = {}  # in progress, but not needed any more
        # The largest result seen: an estimate for each result in progress.
        self._chunk_bytes: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all results that are held."""
        return self._num_bytes

    @property
    def num_slots(self) -> int:
        """Samples, kept or not, of complete blocks, including used ones of the first block."""
        return self._slots_ahead

    def wait(self) -> Block[R]:
        """Return the next block when it is complete. One of its futures may hold an error."""
        self.extend()
        block = self._blocks[0]
        while not block.complete:
            self.extend()
            if block.waits:
                future = next(iter(block.waits))
                self._await(future)  # an error is raised when the result is used
                self._count(block, future)
        return block

    def _await(self, future: Future[R]) -> None:
        while not future.done():
            try:
                future.exception(_POLL_SECONDS)
            except TimeoutError:
                if self._stop():
                    raise StreamStopped("stopped while waiting for images") from None

    def extend(self) -> None:
        """Request chunks ahead, in canonical order, as far as the bounds allow."""
        while self._may_request():
            if not self._has_begun():
                self._start_block()
            block = self._blocks[-1]
            block.futures.append(self._request(block, block.turns[len(block.futures)]))

    def _request(self, block: Block[R], turn: Turn) -> Future[R]:
        future = self._submit(turn)
        block.waits[future] = None
        self._num_waiting += 1
        future.add_done_callback(lambda done: self._arrived.append((block, done)))
        return future

    def _start_block(self) -> None:
        block: Block[R] = Block(self._next_block, self._plan(self._next_block))
        self._blocks.append(block)
        self._num_incomplete += not block.complete
        self._next_block += 1

    def leave(self) -> None:
        """Forget the first block: all its samples were used."""
        block = self._blocks.popleft()
        self._num_bytes -= block.num_bytes
        self._slots_ahead -= block.num_slots
        self._forget(block.futures)
        block.futures.clear()  # a caller that still holds the block then holds no crops

    def revise(self) -> None:
        """Plan the blocks after the first one again, and request the turns that changed."""
        for block in list(self._blocks)[1:]:
            before, block.turns = block.turns, self._plan(block.number)
            for place, future in enumerate(block.futures):
                if block.turns[place] != before[place]:
                    self._drop(block, future)
                    block.futures[place] = self._request(block, block.turns[place])

    def _drop(self, block: Block[R], future: Future[R]) -> None:
        if block.complete:
            self._num_incomplete += 1
            self._slots_ahead -= block.num_slots
        if future in block.waits:
            del block.waits[future]
            self._num_waiting -= 1
            self._dropped[future] = None
        else:
            self._add(block, future, -1)
        self._forget([future])

    def _has_begun(self) -> bool:
        """Return True if the last block has chunks that were not requested yet."""
        return bool(self._blocks) and len(self._blocks[-1].futures) < len(self._blocks[-1].turns)

    def _may_request(self) -> bool:
        """Return True if one more chunk fits. A chunk of the first block always fits."""
        self._count_arrived()
        begun = self._has_begun()
        if not self._blocks or (len(self._blocks) == 1 and begun):
            return True
        if not begun and self._num_incomplete >= self._bounds.num_blocks:
            return False
        if self._slots_ahead >= self._bounds.max_slots:
            return False
        if self._chunk_bytes is None:
            return False  # the size of a result is known when the first one has arrived
        in_progress = (self._num_waiting + len(self._dropped)) * self._chunk_bytes
        return self._num_bytes + in_progress + self._chunk_bytes <= self._bounds.max_bytes

    def _count_arrived(self) -> None:
        while self._arrived:
            self._count(*self._arrived.popleft())

    def _count(self, block: Block[R], future: Future[R]) -> None:
        """Count a result that has arrived, once."""
        self._dropped.pop(future, None)
        if future not in block.waits:
            return
        del block.waits[future]
        self._num_waiting -= 1
        self._add(block, future, 1)
        if block.complete:
            self._num_incomplete -= 1
            self._slots_ahead += block.num_slots

    def _add(self, block: Block[R], future: Future[R], sign: int) -> None:
        """Add (`sign` 1) or subtract (-1) a result; an error has no size."""
        if future.exception() is None:
            result = future.result()
            self._chunk_bytes = max(self._chunk_bytes or 0, result.num_bytes)
            self._num_bytes += sign * result.num_bytes
            block.num_bytes += sign * result.num_bytes
            block.num_slots += sign * max(1, len(result.offsets))
