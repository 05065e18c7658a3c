"""The trainer's side of the data: plans from Control, rows from readers, ahead of need.

A rank takes the same places of every global batch. Rows come in large pieces, several steps of one
reader in one call, and are laid into the batch where they belong; what a lost reader did not give
is asked for again, of whoever makes it anew. Where readers only verify, the rows are cropped here,
before they are laid down. Nothing here decides what is in a batch.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from cluster.protocol.actor_rpc import Link, Unreachable
from cluster.protocol.messages import Plans, Rows
from cluster.trainers.batch_assembly import Arriving, Piece
from cluster.trainers.trainer_crops import Cropping, CroppingConfig
from shards.errors import StreamStopped
from shards.records import CropBatch, bytes_of

_POLL_SECONDS = 0.1
# One call is answered while the next one waits at the reader.
_CALLS_PER_READER = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedConfig:
    """How far ahead rows are asked for.

    `max_bytes` of crops are held or under way, and always those of the next step; `call_bytes`
    come in one call. A reader that does not answer for `answer_seconds` is told of to Control.
    Plans are asked for again after `again_seconds`, where there were none, or nobody held a task.
    `cropping`: how to crop what readers only verified; None where they crop.
    """

    max_bytes: int = 1 << 30
    call_bytes: int = 8 << 20
    num_plans: int = 16
    answer_seconds: float = 10.0
    again_seconds: float = 0.1
    cropping: CroppingConfig | None = None


@dataclass(slots=True)
class _Call:
    """Pieces that were asked of a reader, and the way to it: others may have given it up since."""

    reader: str
    link: Link
    pieces: list[Piece]
    deadline: float


class Feed:
    """This trainer's rows of every global batch, in order, from where `enter` says.

    `control` and `member` are names of actors. What was received is kept over a change of
    generation, as far as this rank's rows are the same.
    """

    def __init__(self, control: str, member: str, config: FeedConfig | None = None) -> None:
        self._config = config or FeedConfig()
        self._control, self._member = Link(control), member
        self._readers: dict[str, Link] = {}
        self._plans_ref: Any = None
        self._plans_after = 0.0
        self._calls: dict[Any, _Call] = {}
        cropping = self._config.cropping
        self._cropping = None if cropping is None else Cropping(cropping)
        self._changed = threading.Condition()  # guards all that follows
        self._arriving = Arriving(self._config.max_bytes, self._config.call_bytes)
        self._error: BaseException | None = None
        self._wait_seconds = 0.0
        self._taken_bytes = self._num_calls = self._num_lost = 0
        self._entered = self._interrupted = self._closed = False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def enter(self, rank: int, world: int, step: int) -> None:
        """From now on give the rows of `rank` of `world` ranks, beginning with batch `step`."""
        with self._changed:
            self._arriving.enter(rank, world, step)
            self._entered, self._interrupted = True, False
            if self._thread.is_alive():
                self._error = None  # if it still holds, Control says so again
            self._changed.notify_all()

    def next(self) -> CropBatch:
        """The next batch: crops of this rank's rows; ids, epochs and cursor of all rows.

        Raises what ended the stream, and StreamStopped once it was interrupted.
        """
        began = time.monotonic()
        with self._changed:
            try:
                while not self._arriving.is_ready or self._interrupted:
                    if self._interrupted or self._closed:
                        raise StreamStopped("stopped while it waited for images")
                    if self._error is not None:
                        raise self._error
                    self._changed.wait()
            finally:
                self._wait_seconds += time.monotonic() - began
            batch = self._arriving.pop()
            self._changed.notify_all()
            return batch

    def status(self) -> Mapping[str, float]:
        """What it waited for and received since it was made, and what it holds."""
        with self._changed:
            return {
                "wait_seconds": self._wait_seconds,
                "taken_bytes": self._taken_bytes,
                "calls": self._num_calls,
                "lost_calls": self._num_lost,
                "held_bytes": self._arriving.held_bytes,
                "limit_bytes": self._config.max_bytes,
                "batches_ready": self._arriving.num_ready,
            }

    def interrupt(self) -> None:
        """From another thread: `next` raises StreamStopped, now and until `enter` is called."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; nothing is asked for any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._cropping is not None:
            self._cropping.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._work()
        except Exception as error:  # `next` raises it
            self._fail(error)

    def _work(self) -> None:
        """One round: ask for what is wanted, take what is there."""
        self._ask_plans()
        self._ask_rows()
        refs = [*self._calls, *([] if self._plans_ref is None else [self._plans_ref])]
        if not refs:
            with self._changed:
                self._changed.wait(_POLL_SECONDS)
            return
        ready, _ = ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        for ref in ready:
            call = self._calls.pop(ref, None)
            if call is None:
                self._take_plans(ref)
            else:
                self._take_rows(ref, call)
        self._give_up_silent()

    def _ask_plans(self) -> None:
        with self._changed:
            first = self._arriving.first_unplanned(self._config.num_plans)
            asks = self._entered and self._error is None and first is not None
        if asks and self._plans_ref is None and time.monotonic() >= self._plans_after:
            try:
                self._plans_ref = self._control.ask(
                    "plans", self._member, first, self._config.num_plans
                )
            except Unreachable:
                self._pause_plans()

    def _pause_plans(self) -> None:
        self._plans_after = time.monotonic() + self._config.again_seconds

    def _take_plans(self, ref: Any) -> None:
        self._plans_ref = None
        try:
            plans: Plans = self._control.answer(ref)
        except Unreachable:
            self._pause_plans()
        except Exception as error:  # what ended the stream: `next` raises it
            self._fail(error)
        else:
            with self._changed:
                if not self._arriving.plan(plans):
                    self._pause_plans()

    def _ask_rows(self) -> None:
        under_way = Counter(call.reader for call in self._calls.values())
        with self._changed:
            readers = self._arriving.readers()
        for reader in readers:
            for _ in range(under_way[reader], _CALLS_PER_READER):
                with self._changed:
                    pieces = self._arriving.pop_call(reader)
                if not pieces:
                    break
                self._call(reader, pieces)

    def _call(self, reader: str, pieces: list[Piece]) -> None:
        link = self._readers.setdefault(reader, Link(reader))
        wanted = tuple((piece.task, piece.rows) for piece in pieces)
        deadline = time.monotonic() + self._config.answer_seconds
        call = _Call(reader, link, pieces, deadline)
        try:
            self._calls[link.ask("take", pieces[0].term, wanted)] = call
        except Unreachable:
            self._lost(call)

    def _take_rows(self, ref: Any, call: _Call) -> None:
        try:
            rows: Rows = call.link.answer(ref, self._config.answer_seconds)
        except Unreachable:
            self._lost(call)
            return
        num_bytes = bytes_of(rows.crops)
        with self._changed:
            self._num_calls += 1
            self._taken_bytes += num_bytes
        if self._cropping is None:
            self._put(call.pieces, rows, num_bytes)
        else:
            cropped = self._cropping.submit(call.pieces, rows)
            cropped.add_done_callback(partial(self._take_crops, call.pieces, num_bytes))
        self._tell_missing(call, set(rows.missing))

    def _take_crops(self, pieces: list[Piece], num_bytes: int, cropped: Future[Rows]) -> None:
        """On the thread that cropped."""
        if cropped.cancelled():
            return
        error = cropped.exception()
        if error is None:
            self._put(pieces, cropped.result(), num_bytes)
            return
        with self._changed:
            self._arriving.lost(pieces)
        self._fail(error)

    def _put(self, pieces: list[Piece], rows: Rows, num_bytes: int) -> None:
        with self._changed:
            self._arriving.put(pieces, rows, num_bytes)
            self._changed.notify_all()

    def _give_up_silent(self) -> None:
        now = time.monotonic()
        for ref, call in list(self._calls.items()):
            if now > call.deadline:
                del self._calls[ref]
                self._lost(call)

    def _lost(self, call: _Call) -> None:
        """This reader does not give what it holds: somebody else must."""
        with self._changed:
            self._num_lost += 1
            self._arriving.lost(call.pieces)
        self._readers.pop(call.reader, None)
        self._tell_missing(call, {piece.task for piece in call.pieces})

    def _tell_missing(self, call: _Call, tasks: set[int]) -> None:
        if not tasks:
            return
        self._pause_plans()
        try:
            for task in sorted(tasks):
                self._control.ask("missing", self._member, task, call.reader)
        except Unreachable:
            return  # its successor knows no task of its own yet

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
