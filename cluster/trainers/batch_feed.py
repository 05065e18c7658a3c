"""BatchFeed: fetches the rows of a trainer ahead of need: plans from Control, rows from readers.

A rank takes the same positions of every global batch. One request asks one reader for rows of
several steps; a reader of the same node answers with the places of the rows in its memory. Rows of
a lost reader are requested again from the reader that crops them anew.
Where readers only verify, `crops_ahead` crops the next batches while one is trained on.
The feed does not decide what is in a batch.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray

from cluster.protocol.actor_rpc import ActorClient, Unreachable
from cluster.protocol.messages import Plans, Rows
from cluster.trainers.batch_assembly import BatchAssembly, TaskRows
from cluster.trainers.borrowed_crops import BorrowedCrops
from cluster.trainers.crops_ahead import CropsAhead
from cluster.trainers.trainer_crops import TrainerCropsConfig
from shards.errors import StreamStopped
from shards.records import CropBatch

_POLL_SECONDS = 0.1
# A reader answers one request while the next one waits there.
_REQUESTS_PER_READER = 2
# A call for more rows takes no longer when their places are sent.
_LENT_FACTOR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedConfig:
    """Settings of the prefetch.

    Crops of `max_bytes` are held or requested, and always those of the next step; `call_bytes` come
    in one answer. `borrows`: readers of the same node answer with places in their memory, of four
    times as many bytes. A reader without an answer for `answer_seconds` is reported to Control.
    Plans are requested again after `retry_seconds` if there were none, or if a task had no holder.
    `cropping`: how to crop verified images; None where readers crop. Then `max_bytes` counts the
    encoded images.
    """

    max_bytes: int = 1 << 30
    call_bytes: int = 16 << 20
    borrows: bool = True
    num_plans: int = 16
    answer_seconds: float = 10.0
    retry_seconds: float = 0.1
    cropping: TrainerCropsConfig | None = None


@dataclass(slots=True)
class _Request:
    """Rows that were requested from a reader, and the client that was used."""

    reader: str
    client: ActorClient
    parts: list[TaskRows]
    deadline: float


class BatchFeed:
    """This trainer's rows of every global batch, in order, beginning where `enter` says.

    `control` and `member` are names of actors. A change of generation keeps the received rows as
    far as the rank has the same ones.
    """

    def __init__(self, control: str, member: str, config: FeedConfig | None = None) -> None:
        self._config = config or FeedConfig()
        self._control, self._member = ActorClient(control), member
        self._readers: dict[str, ActorClient] = {}
        node = ray.get_runtime_context().get_node_id() if self._config.borrows else ""
        self._borrowed = BorrowedCrops(node)
        self._plans_ref: Any = None
        self._plans_after = 0.0
        self._requests: dict[Any, _Request] = {}
        self._late: dict[Any, _Request] = {}  # given up, but their loans must be returned
        self._changed = threading.Condition()  # guards all that follows
        self._assembly = BatchAssembly(self._config.max_bytes)
        cropping = self._config.cropping
        self._ahead = CropsAhead(self._assembly, cropping, self._crops_ended) if cropping else None
        self._error: BaseException | None = None
        self._wait_seconds = 0.0
        self._taken_bytes = self._lent_bytes = self._num_calls = self._num_lost = 0
        self._entered = self._interrupted = self._closed = False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def enter(self, rank: int, world: int, step: int) -> None:
        """Give the rows of `rank` of `world` ranks, beginning with batch `step`."""
        with self._changed:
            self._assembly.enter(rank, world, step)
            self._entered, self._interrupted = True, False
            if self._thread.is_alive():
                self._error = None  # if it still holds, Control answers with it again
            if self._ahead is not None:
                self._ahead.forget()
                self._ahead.begin()
            self._changed.notify_all()

    def next(self) -> CropBatch:
        """Return the next batch: crops of this rank's rows; ids, epochs and cursor of all rows.

        Raises the error that ended the stream, and StreamStopped after `interrupt`.
        """
        began = time.monotonic()
        with self._changed:
            try:
                while not self._is_ready() or self._interrupted:
                    if self._interrupted or self._closed:
                        raise StreamStopped("stopped while it waited for images")
                    if self._error is not None:
                        raise self._error
                    self._changed.wait()
            finally:
                self._wait_seconds += time.monotonic() - began
            step, batch = self._assembly.next_step, self._assembly.pop()
            batch = self._cropped(step, batch)
            if self._ahead is not None:
                self._ahead.begin()
            self._changed.notify_all()
            return batch

    def peek(self) -> CropBatch | None:
        """Return the batch that `next` would return without waiting; None: it would wait.

        Until then its crops are the same objects, unless this rank gets other rows.
        """
        with self._changed:
            if self._interrupted or not self._is_ready():
                return None
            return self._cropped(self._assembly.next_step, self._assembly.peek())

    def status(self) -> Mapping[str, float]:
        """Return totals of waits and answers since the start, and what is held now."""
        with self._changed:
            return {
                "wait_seconds": self._wait_seconds,
                "taken_bytes": self._taken_bytes,
                "lent_bytes": self._lent_bytes,
                "calls": self._num_calls,
                "lost_calls": self._num_lost,
                "held_bytes": self._assembly.held_bytes,
                "limit_bytes": self._config.max_bytes,
                "batches_ready": self._assembly.num_ready,
            }

    def interrupt(self) -> None:
        """Make `next` raise StreamStopped until `enter` is called. Called by another thread."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; nothing more is requested."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._ahead is not None:
            self._ahead.close()

    def __enter__(self) -> "BatchFeed":
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
        """Send requests, and take the answers that have come."""
        self._request_plans()
        self._request_rows()
        plans = [] if self._plans_ref is None else [self._plans_ref]
        refs = [*self._requests, *self._late, *plans]
        if not refs:
            with self._changed:
                self._changed.wait(_POLL_SECONDS)
            return
        ready, _ = ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        for ref in ready:
            if ref in self._requests:
                self._take_rows(ref, self._requests.pop(ref))
            elif ref in self._late:
                self._take_late(ref, self._late.pop(ref))
            else:
                self._take_plans(ref)
        self._drop_late_requests()

    def _request_plans(self) -> None:
        with self._changed:
            first = self._assembly.first_unplanned(self._config.num_plans)
            wants = self._entered and self._error is None and first is not None
        if wants and self._plans_ref is None and time.monotonic() >= self._plans_after:
            try:
                self._plans_ref = self._control.submit(
                    "plans", self._member, first, self._config.num_plans
                )
            except Unreachable:
                self._delay_plans()

    def _delay_plans(self) -> None:
        self._plans_after = time.monotonic() + self._config.retry_seconds

    def _take_plans(self, ref: Any) -> None:
        self._plans_ref = None
        try:
            plans: Plans = self._control.result(ref)
        except Unreachable:
            self._delay_plans()
        except Exception as error:  # the stream ended with it; `next` raises it
            self._fail(error)
        else:
            with self._changed:
                if not self._assembly.plan(plans):
                    self._delay_plans()

    def _request_rows(self) -> None:
        in_flight = Counter(request.reader for request in self._requests.values())
        with self._changed:
            readers = self._assembly.readers()
        for reader in readers:
            lends = self._borrowed.is_lending(reader)
            call_bytes = (
                _LENT_FACTOR * self._config.call_bytes if lends else self._config.call_bytes
            )
            for _ in range(in_flight[reader], _REQUESTS_PER_READER):
                with self._changed:
                    parts = self._assembly.pop_request(reader, call_bytes)
                if not parts:
                    break
                self._request(reader, parts)
                in_flight[reader] += 1
        for reader in self._borrowed.waiting():
            if not in_flight[reader]:
                self._return_loans(reader)

    def _request(self, reader: str, parts: list[TaskRows]) -> None:
        client = self._readers.setdefault(reader, ActorClient(reader))
        wanted = tuple((part.task, part.rows) for part in parts)
        deadline = time.monotonic() + self._config.answer_seconds
        request = _Request(reader, client, parts, deadline)
        borrower, returned = self._borrowed.borrower(reader), self._borrowed.pop_done(reader)
        try:
            ref = client.submit("take", parts[0].term, wanted, borrower, returned)
        except Unreachable:
            self._lost(request)
        else:
            self._requests[ref] = request

    def _return_loans(self, reader: str) -> None:
        """Return loans to a reader from which nothing is wanted now."""
        client = self._readers.setdefault(reader, ActorClient(reader))
        try:
            client.submit("returned", self._borrowed.pop_done(reader))
        except Unreachable:
            return  # its loans have ended with it

    def _take_rows(self, ref: Any, request: _Request) -> None:
        try:
            sent: Rows = request.client.result(ref, self._config.answer_seconds)
        except Unreachable:
            self._lost(request)
            return
        crops = self._borrowed.look(request.reader, sent)
        with self._changed:
            self._num_calls += 1
            if crops is None:
                self._assembly.lost(request.parts)
            else:
                self._taken_bytes += sent.num_bytes
                self._lent_bytes += sent.num_bytes if sent.loan else 0
                self._assembly.put(request.parts, crops, sent.missing, sent.num_bytes)
            if self._ahead is not None:
                self._ahead.begin()
            self._changed.notify_all()
        self._borrowed.done(request.reader, sent)
        self._report_missing(request, set(sent.missing))

    def _take_late(self, ref: Any, request: _Request) -> None:
        """Return what a reader lent after it had been given up."""
        try:
            self._borrowed.done(request.reader, request.client.result(ref))
        except Unreachable:
            return  # it has ended

    def _is_ready(self) -> bool:
        """Return True if the next batch is complete, and cropped."""
        step = self._assembly.next_step
        return self._assembly.is_ready and (self._ahead is None or self._ahead.has(step))

    def _cropped(self, step: int, batch: CropBatch) -> CropBatch:
        """Return the batch `step`, which is ready, with its crops."""
        return batch if self._ahead is None else replace(batch, crops=self._ahead.crops(step))

    def _crops_ended(self, error: BaseException | None) -> None:
        """Note the end of some crops. Called by the thread that made them."""
        if error is not None:
            self._fail(error)
            return
        with self._changed:
            self._changed.notify_all()

    def _drop_late_requests(self) -> None:
        now = time.monotonic()
        for ref, request in list(self._requests.items()):
            if now > request.deadline:
                self._late[ref] = self._requests.pop(ref)
                self._lost(request)

    def _lost(self, request: _Request) -> None:
        """Give a reader up: another one must crop what it held."""
        with self._changed:
            self._num_lost += 1
            self._assembly.lost(request.parts)
        self._readers.pop(request.reader, None)
        self._borrowed.forget(request.reader)
        self._report_missing(request, {part.task for part in request.parts})

    def _report_missing(self, request: _Request, tasks: set[int]) -> None:
        if not tasks:
            return
        self._delay_plans()
        try:
            for task in sorted(tasks):
                self._control.submit("missing", self._member, task, request.reader)
        except Unreachable:
            return  # the next Control has no tasks yet

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
