"""Which chunks are asked for before they are needed: far enough for all readers, and no further.

A block can be mixed once all its chunks are there. The block that the next batch needs is always
asked for; later ones as far as the bounds allow. A bound by blocks or batches alone would stop the
stream where blocks are small or most samples are rejected; a bound by bytes alone would not hold
where crops are small, or where there are none.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """A block under way: its turns in canonical order, and what became of those asked for."""

    number: int
    turns: list[Turn]
    futures: list[Future[R]] = field(default_factory=list)
    num_bytes: int = 0  # these two are counted when the block is complete
    num_slots: int = 0

    @property
    def complete(self) -> bool:
        return len(self.futures) == len(self.turns) and all(f.done() for f in self.futures)


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
        self._incomplete: list[Block[R]] = []  # of these, those that are not counted yet
        self._next_block = block
        self._bytes_ahead = self._slots_ahead = 0  # in the blocks that are complete
        self._dropped: list[Future[R]] = []  # still under way, and of no use any more
        # The largest result seen: what one under way may bring.
        self._chunk_bytes: int | None = None

    def wait(self) -> Block[R]:
        """The block that comes next, complete. One of its futures may hold an error."""
        self.extend()
        block = self._blocks[0]
        while not block.complete:
            self.extend()
            for future in list(block.futures):
                if not future.done():
                    self._await(future)  # what it raises is raised when it is used
                    break
        return block

    def _await(self, future: Future[R]) -> None:
        while not future.done():
            try:
                future.exception(_POLL_SECONDS)
            except TimeoutError:
                if self._stop():
                    raise StreamStopped("stopped while it waited for pictures") from None

    def extend(self) -> None:
        """Ask for chunks ahead, in canonical order, as far as the bounds allow."""
        while self._may_ask():
            if not self._begun():
                self._start_block()
            block = self._blocks[-1]
            block.futures.append(self._submit(block.turns[len(block.futures)]))

    def _start_block(self) -> None:
        block: Block[R] = Block(self._next_block, self._plan(self._next_block))
        self._blocks.append(block)
        self._incomplete.append(block)
        self._next_block += 1

    def leave(self) -> None:
        """Forget the block that came first: it is used up."""
        self._count_complete()
        block = self._blocks.popleft()
        self._uncount(block)
        self._forget(block.futures)
        block.futures.clear()  # whoever still holds the block holds no crops

    def revise(self) -> None:
        """Plan the blocks behind the first one anew, and ask again for what is another turn now."""
        for block in list(self._blocks)[1:]:
            before, block.turns = block.turns, self._plan(block.number)
            for place in range(len(block.futures)):
                if block.turns[place] != before[place]:
                    self._reopen(block)
                    self._dropped.append(block.futures[place])
                    self._forget(self._dropped[-1:])
                    block.futures[place] = self._submit(block.turns[place])

    def _begun(self) -> bool:
        """Whether the last block has chunks that were not asked for yet."""
        return bool(self._blocks) and len(self._blocks[-1].futures) < len(self._blocks[-1].turns)

    def _may_ask(self) -> bool:
        """Whether one more chunk fits. The block that the next batch needs always does."""
        begun = self._begun()
        if not self._blocks or (len(self._blocks) == 1 and begun):
            return True
        self._count_complete()
        if not begun and len(self._incomplete) >= self._bounds.num_blocks:
            return False
        if self._slots_ahead >= self._bounds.max_slots:
            return False
        self._dropped = [future for future in self._dropped if not future.done()]
        futures = [future for block in self._incomplete for future in block.futures]
        done = [result.num_bytes for result in _results(futures)]
        if done:
            self._chunk_bytes = max(self._chunk_bytes or 0, *done)
        if self._chunk_bytes is None:
            return False  # how much a chunk brings is seen when the first one is there
        under_way = (len(futures) - len(done) + len(self._dropped)) * self._chunk_bytes
        held = self._bytes_ahead + sum(done) + under_way
        return held + self._chunk_bytes <= self._bounds.max_bytes

    def _count_complete(self) -> None:
        for block in [block for block in self._incomplete if block.complete]:
            self._incomplete.remove(block)
            for result in _results(block.futures):
                self._chunk_bytes = max(self._chunk_bytes or 0, result.num_bytes)
                block.num_bytes += result.num_bytes
                block.num_slots += max(1, len(result.offsets))
            self._bytes_ahead += block.num_bytes
            self._slots_ahead += block.num_slots

    def _reopen(self, block: Block[R]) -> None:
        if block not in self._incomplete:
            self._uncount(block)
            self._incomplete.append(block)

    def _uncount(self, block: Block[R]) -> None:
        self._bytes_ahead -= block.num_bytes
        self._slots_ahead -= block.num_slots
        block.num_bytes = block.num_slots = 0


def _results(futures: Iterable[Future[R]]) -> Iterator[R]:
    """What is there already; an error is none of it until its turn comes."""
    for future in futures:
        if future.done() and future.exception() is None:
            yield future.result()
