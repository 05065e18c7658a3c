"""Which chunks are asked for before they are needed: far enough for all readers, and no further.

A block can be mixed once all its chunks are there. The block that the next batch needs is always
asked for; later ones as far as the bounds allow. A bound by blocks or batches alone would stop the
stream where blocks are small or most samples are rejected; a bound by bytes alone would not hold
where crops are small, or where there are none.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from shards.order import Order
from shards.records import ChunkCrops, Turn

Submit = Callable[[Turn], "Future[ChunkCrops]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """`max_bytes` of crops held or under way, `max_slots` samples in complete blocks, and
    `num_blocks` that are not complete yet."""

    max_bytes: int
    max_slots: int
    num_blocks: int


@dataclass(slots=True)
class Block:
    """A block under way: its chunks in canonical order, and what became of each."""

    number: int
    futures: list["Future[ChunkCrops]"] = field(default_factory=list)
    num_chunks: int = 0
    num_bytes: int = 0  # these two are counted when the block is complete
    num_slots: int = 0

    @property
    def complete(self) -> bool:
        return len(self.futures) == self.num_chunks and all(f.done() for f in self.futures)


class Lookahead:
    """Blocks from `block` on, in canonical order. Holds what was asked for and not used up.

    `submit(turn)` must return a future of that chunk's crops; it is called from the thread that
    uses this, and must not block long.
    """

    def __init__(self, order: Order, submit: Submit, bounds: Bounds, block: int) -> None:
        self._order, self._submit, self._bounds = order, submit, bounds
        self._blocks: deque[Block] = deque()
        self._incomplete: list[Block] = []
        self._next_turns: deque[Turn] = deque()
        self._next_block = block
        self._bytes_ahead = self._slots_ahead = 0  # in the blocks that are complete
        # The largest chunk of crops seen: what one under way may bring.
        self._chunk_bytes: int | None = None

    def wait(self) -> Block:
        """The block that comes next, complete. One of its futures may hold an error."""
        self.extend()
        block = self._blocks[0]
        while not block.complete:
            self.extend()
            for future in list(block.futures):
                if not future.done():
                    future.exception()  # waits; what it raises is raised when it is used
                    break
        return block

    def extend(self) -> None:
        """Ask for chunks ahead, in canonical order, as far as blocks and bytes allow."""
        while self._may_ask():
            if not self._next_turns:
                self._start_block()
            block = self._blocks[-1]
            block.futures.append(self._submit(self._next_turns.popleft()))

    def _start_block(self) -> None:
        turns = self._order.block(self._next_block)
        self._blocks.append(Block(self._next_block, num_chunks=len(turns)))
        self._incomplete.append(self._blocks[-1])
        self._next_turns.extend(turns)
        self._next_block += 1

    def _may_ask(self) -> bool:
        """Whether one more chunk fits. The block that the next batch needs always does."""
        if not self._blocks or (len(self._blocks) == 1 and self._next_turns):
            return True
        self._count_complete()
        if not self._next_turns and len(self._incomplete) >= self._bounds.num_blocks:
            return False
        if self._slots_ahead >= self._bounds.max_slots:
            return False
        futures = [future for block in self._incomplete for future in block.futures]
        done = [result.num_bytes for result in _results(futures)]
        if done:
            self._chunk_bytes = max(self._chunk_bytes or 0, *done)
        if self._chunk_bytes is None:
            return False  # how much a chunk brings is seen when the first one is there
        under_way = (len(futures) - len(done)) * self._chunk_bytes
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

    def leave(self) -> None:
        """Forget the block that came first: it is used up."""
        self._count_complete()
        block = self._blocks.popleft()
        self._bytes_ahead -= block.num_bytes
        self._slots_ahead -= block.num_slots
        block.futures.clear()  # whoever still holds the block holds no crops


def _results(futures: Iterable["Future[ChunkCrops]"]) -> Iterator[ChunkCrops]:
    """What is there already; an error is none of it until its turn comes."""
    for future in futures:
        if future.done() and future.exception() is None:
            yield future.result()
