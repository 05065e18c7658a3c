"""Which chunks are asked for before they are needed: far enough for all readers, and no further.

A block can be mixed once all its chunks are there. The block that the next batch needs is always
asked for; later ones as far as the bounds allow. A bound by blocks or batches alone would stop the
stream where blocks are small or most samples are rejected; a bound by bytes alone would not hold
where crops are small, or where there are none.
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
    """Nobody wants to stop."""
    return False


def ignore(_: Sequence[Future[R]]) -> None:
    """Nobody keeps anything for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """`max_bytes` of results held or under way, `max_slots` samples in complete blocks, and
    `num_blocks` that are not complete yet."""

    max_bytes: int
    max_slots: int
    num_blocks: int


@dataclass(slots=True, eq=False)
class Block(Generic[R]):
    """A block under way: its turns in canonical order, and what became of those asked for.

    `waits` are those of `futures` that are not counted in `num_bytes` and `num_slots` yet.
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
    """Blocks from `block` on, in canonical order. Holds what was asked for and not used up.

    `plan(number)` gives the turns of a block; `submit(turn)` must return a future of what its chunk
    gives; both are called from the thread that uses this, and must not block long. `stop()` is
    asked while a result is waited for, and ends the wait with StreamStopped. `forget(futures)` is
    told of those that will not be looked at again.
    """

    def __init__(
        self,
        plan: Plan,
        submit: Submit[R],
        bounds: Bounds,
        block: int,
        stop: Stop = never,
        forget: Forget[R] = ignore,
    ) -> None:
        self._plan, self._submit, self._bounds = plan, submit, bounds
        self._stop, self._forget = stop, forget
        self._blocks: deque[Block[R]] = deque()
        self._next_block = block
        # Told by whoever finishes them: to look through all would take longer the more there are.
        self._arrived: deque[tuple[Block[R], Future[R]]] = deque()
        self._num_waiting = self._num_bytes = 0  # of all blocks
        self._num_incomplete = self._slots_ahead = 0  # blocks, and the slots of the others
        self._dropped: dict[Future[R], None] = {}  # still under way, and of no use any more
        # The largest result seen: what one under way may bring.
        self._chunk_bytes: int | None = None

    @property
    def num_bytes(self) -> int:
        """Of all results that are held."""
        return self._num_bytes

    @property
    def num_slots(self) -> int:
        """Samples, kept or not, of complete blocks; those of the first one that were used too."""
        return self._slots_ahead

    def wait(self) -> Block[R]:
        """The block that comes next, complete. One of its futures may hold an error."""
        self.extend()
        block = self._blocks[0]
        while not block.complete:
            self.extend()
            if block.waits:
                future = next(iter(block.waits))
                self._await(future)  # what it raises is raised when it is used
                self._count(block, future)
        return block

    def _await(self, future: Future[R]) -> None:
        while not future.done():
            try:
                future.exception(_POLL_SECONDS)
            except TimeoutError:
                if self._stop():
                    raise StreamStopped("stopped while it waited for images") from None

    def extend(self) -> None:
        """Ask for chunks ahead, in canonical order, as far as the bounds allow."""
        while self._may_ask():
            if not self._begun():
                self._start_block()
            block = self._blocks[-1]
            block.futures.append(self._ask(block, block.turns[len(block.futures)]))

    def _ask(self, block: Block[R], turn: Turn) -> Future[R]:
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
        """Forget the block that came first: it is used up."""
        block = self._blocks.popleft()
        self._num_bytes -= block.num_bytes
        self._slots_ahead -= block.num_slots
        self._forget(block.futures)
        block.futures.clear()  # whoever still holds the block holds no crops

    def revise(self) -> None:
        """Plan the blocks behind the first one anew, and ask again for what is another turn now."""
        for block in list(self._blocks)[1:]:
            before, block.turns = block.turns, self._plan(block.number)
            for place, future in enumerate(block.futures):
                if block.turns[place] != before[place]:
                    self._drop(block, future)
                    block.futures[place] = self._ask(block, block.turns[place])

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

    def _begun(self) -> bool:
        """Whether the last block has chunks that were not asked for yet."""
        return bool(self._blocks) and len(self._blocks[-1].futures) < len(self._blocks[-1].turns)

    def _may_ask(self) -> bool:
        """Whether one more chunk fits. The block that the next batch needs always does."""
        self._count_arrived()
        begun = self._begun()
        if not self._blocks or (len(self._blocks) == 1 and begun):
            return True
        if not begun and self._num_incomplete >= self._bounds.num_blocks:
            return False
        if self._slots_ahead >= self._bounds.max_slots:
            return False
        if self._chunk_bytes is None:
            return False  # how much a chunk brings is seen when the first one is there
        under_way = (self._num_waiting + len(self._dropped)) * self._chunk_bytes
        return self._num_bytes + under_way + self._chunk_bytes <= self._bounds.max_bytes

    def _count_arrived(self) -> None:
        while self._arrived:
            self._count(*self._arrived.popleft())

    def _count(self, block: Block[R], future: Future[R]) -> None:
        """Count what is there now, once."""
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
        """Count a result in, or out; an error is none of it until its turn comes."""
        if future.exception() is None:
            result = future.result()
            self._chunk_bytes = max(self._chunk_bytes or 0, result.num_bytes)
            self._num_bytes += sign * result.num_bytes
            block.num_bytes += sign * result.num_bytes
            block.num_slots += sign * max(1, len(result.offsets))
