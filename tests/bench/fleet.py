"""Load of 1,000 readers and 512 trainers on one Control: `python -m tests.bench.fleet`.

No cluster is needed. Lease table, sequencer, membership and autoscaler are the production code in
simulated time; their CPU and the bytes of pickled messages are measured. The speed of a reader and
of a Ray call were measured elsewhere (BENCHMARKS.md). The rest is arithmetic.
"""

import heapq
import json
import pickle
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tyro

from cluster.actors.autoscaler import Autoscaler, Observation, ScalingConfig
from cluster.control.sequencer import Sequencer, SequencerConfig, SequencerSpec
from cluster.leases.lease_table import LeaseTable
from cluster.membership.membership import Membership
from cluster.protocol.messages import (
    BatchPlan,
    ChunkHeader,
    FinishedLease,
    HeartbeatMessage,
    ReaderReport,
)
from cluster.protocol.step_report import StepReport
from shards.records import Cursor, ShardInfo, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stream.batch_stream import build_order
from shards.stream.journal import Journal
from shards.stream.manifest import Manifest
from shards.stream.order import Order
from shards.stream.stream_config import StreamConfig

_CROP_BYTES = 3 * (2 * 224**2 + 6 * 96**2)
# Fields of a line of the log.
_FIELDS: dict[str, Any] = {"loss": 8.1234, "lr": 0.6, "digest": "0" * 32, "num_samples": 4096}
_BEATS_PER_SECOND = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Rates are per second: `reader_rate` images per reader, `trainer_rate` images per trainer,
    `calls` answered by one Ray actor, `take_bytes` sent by it."""

    readers: int = 1000
    trainers: int = 512
    images: int = 10**9
    batch_size: int = 32_768
    shards: int = 100_000
    image_bytes: int = 100_000
    reader_rate: float = 230.0
    trainer_rate: float = 400.0
    readers_per_node: int = 31
    trainers_per_node: int = 8
    chunk_bytes: int | None = None
    calls: float = 1900.0
    take_bytes: float = 235e6
    state_bytes: int = 8 * 28_400_000 + 8 * 3840 * 128
    seconds: float = 10.0
    json: bool = False

    @property
    def trained_per_second(self) -> float:
        return self.trainers * self.trainer_rate

    @property
    def steps(self) -> float:
        return self.trained_per_second / self.batch_size


@dataclass(frozen=True)
class Row:
    """One number, and the limit that it must not exceed."""

    what: str
    number: float
    unit: str
    limit: float | None = None


def made_up(options: Options) -> Manifest:
    """Return a manifest of equally long shards for this many images."""
    size = options.images * options.image_bytes // options.shards
    shards = [
        ShardInfo(f"s3://bucket/shard-{n:08d}.tar", size, f"{n:032x}")
        for n in range(options.shards)
    ]
    return Manifest(tuple(shards), float(options.image_bytes))


def header_of(turn: Turn, options: Options) -> ChunkHeader:
    """Return the header that a reader would send for a chunk of good images."""
    chunk = turn.chunk
    first = -(-chunk.start // options.image_bytes) * options.image_bytes
    offsets = np.arange(first, chunk.stop, options.image_bytes, np.int64)
    seconds = len(offsets) / options.reader_rate
    num_bytes = len(offsets) * _CROP_BYTES
    kept = np.ones(len(offsets), np.bool_)
    return ChunkHeader(chunk, turn.epoch, offsets, kept, (), num_bytes, crop_seconds=seconds)


class Timed:
    """Counts calls, their CPU seconds and their bytes."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.seconds = 0.0
        self.request_bytes = self.answer_bytes = 0

    def call(self, method: Callable[..., Any], message: Any, now: float) -> Any:
        began = time.thread_time()
        answer = method(message, now)
        self.seconds += time.thread_time() - began
        self.num_calls += 1
        if self.num_calls % 16 == 0:  # pickling all of them would dominate the time
            self.request_bytes += 16 * len(pickle.dumps(message, 5))
            self.answer_bytes += 16 * len(pickle.dumps(answer, 5))
        return answer


def lease_traffic(options: Options, order: Order, manifest: Manifest) -> tuple[Timed, float]:
    """Simulate readers that report every chunk; return costs, and images per second."""
    table, timed = LeaseTable(1), Timed()
    turns = deque[Turn]()
    block = 0
    asked: deque[int] = deque()  # in order
    decided: set[int] = set()
    num_made = 0
    leases: dict[str, deque[Any]] = {f"reader-{n}": deque() for n in range(options.readers)}
    held: dict[str, set[int]] = {name: set() for name in leases}
    events = [(n / options.readers, name) for n, name in enumerate(leases)]
    warm = options.seconds / 2
    measured = Timed()
    while events[0][0] < warm + options.seconds:
        now, name = heapq.heappop(events)
        if now >= warm and timed is not measured:
            timed, num_made = measured, 0
        while len(asked) < 5 * options.readers:
            if not turns:
                turns.extend(order.block(block))
                block += 1
            turn = turns.popleft()
            asked.append(table.add_task(turn, manifest.shards[turn.chunk.shard]))
        mine, finished = leases[name], ()
        if mine and now > 0 and mine[0][0] <= now:
            lease = mine.popleft()[1]
            made = header_of(lease.turn, options)
            finished = (FinishedLease(lease.task, lease.epoch, made),)
            num_made += len(made.offsets)
            held[name].add(lease.task)
        report = ReaderReport(
            reader=name,
            term=1,
            finished=finished,
            current_task=mine[0][1].task if mine else None,
            waiting=tuple(lease.task for _, lease in list(mine)[1:]),
            wanted=4 - len(mine),
            held=tuple(held[name] - {f.task for f in finished}),
            held_bytes=len(held[name]) * 20_000_000,
            busy_seconds=now,
            counts={("samples", "cropped"): num_made},
        )
        orders = timed.call(table.exchange, report, now)
        held[name] -= set(orders.release)
        for lease in orders.leases:
            began = mine[-1][0] if mine else now
            mine.append((began + header_of(lease.turn, options).crop_seconds, lease))
        then = min(mine[0][0] if mine else now + orders.seconds, now + orders.seconds)
        heapq.heappush(events, (max(then, now + 1e-6), name))
        began = time.thread_time()
        decided.update(task for task, _ in table.results())
        while asked and asked[0] in decided:
            task = asked.popleft()
            decided.remove(task)
            table.release([task])
        timed.seconds += time.thread_time() - began
    return measured, num_made / options.seconds


def plan_cost(options: Options, order: Order, manifest: Manifest) -> tuple[BatchPlan, float]:
    """Return a plan, and the CPU seconds to form one with infinitely fast readers."""
    stream = StreamConfig(batch_size=options.batch_size)
    config = SequencerConfig(num_readers=options.readers)
    table = LeaseTable(1)
    cpu = -1.0
    spec = SequencerSpec(
        shards=manifest.shards,
        order=order,
        stream=stream,
        admission=AdmissionConfig(),
        config=config,
        journal=Journal(order.manifest, order.digest),
    )
    with Sequencer(table, spec) as sequencer:
        finished: tuple[FinishedLease, ...] = ()
        first, step = 2, 0
        while step < first + 6:
            report = ReaderReport(reader="all", term=1, finished=finished, wanted=10**6)
            with sequencer.leases() as leases:
                orders = leases.exchange(report, time.monotonic())
            finished = tuple(
                FinishedLease(lease.task, lease.epoch, header_of(lease.turn, options))
                for lease in orders.leases
            )
            if plans := sequencer.plans(step, 1).plans:
                plan = plans[0]
                step += 1
                sequencer.commit(step)
                if step == first:
                    cpu = _cpu_of_others()
            elif not finished:
                time.sleep(0.001)
        return plan, (_cpu_of_others() - cpu) / 6


def beat_traffic(options: Options, cursor: Cursor) -> Timed:
    """Simulate heartbeats of trainers, two per second, for ten seconds of a generation."""
    membership = Membership(1, options.batch_size, options.trainers)
    names = [f"trainer-{n}" for n in range(options.trainers)]

    def beat(
        name: str, phase: Any, generation: int, committed: int, **more: Any
    ) -> HeartbeatMessage:
        return HeartbeatMessage(
            member=name, term=1, phase=phase, generation=generation, committed=committed,
            node="10.0.0.1", cursor=cursor, **more,
        )  # fmt: skip

    directives: dict[str, Any] = {}
    for phase in ("ready", "ready", "joining", "running"):
        for name in names:
            generation = directives[name].generation if phase in ("joining", "running") else 0
            directives[name] = membership.beat(beat(name, phase, generation, 0, address="h:1"), 0.0)
    timed, generation = Timed(), directives[names[0]].generation
    assert len(directives[names[0]].members) == options.trainers
    acknowledged = 0
    for tick in range(_BEATS_PER_SECOND * 10):
        now = tick / _BEATS_PER_SECOND
        step = round(now * options.steps)
        records = tuple(
            StepReport(step=s, cursor=cursor, **_FIELDS) for s in range(acknowledged + 1, step)
        )
        for rank, name in enumerate(names):
            reports = records if rank == 0 else ()
            message = beat(name, "running", generation, step, reports=reports, doing="step")
            answer = timed.call(membership.beat, message, now)
            acknowledged = max(acknowledged, answer.acknowledged)
    return timed


def seconds_to_scale(options: Options, boot: float = 90.0, tick: float = 5.0) -> float:
    """Return the seconds from 4 readers to enough, if a node boots in `boot` seconds."""
    scaler = Autoscaler(ScalingConfig(min_readers=4, max_readers=2 * options.readers))
    ready = {f"r{n}": "n0" for n in range(4)}
    starting: dict[str, float] = {}
    now = 0.0
    while len(ready) * options.reader_rate < options.trained_per_second:
        now += tick
        for name in [name for name, at in starting.items() if at <= now]:
            del starting[name]
            ready[name] = f"n{int(name[1:]) // options.readers_per_node}"
        made = len(ready) * options.reader_rate * tick
        wait = tick * max(0.0, 1 - made / tick / options.trained_per_second)
        seen = Observation(
            now=now, seconds=tick, num_trained=round(made), step_seconds=tick - wait,
            wait_seconds=wait, num_made=round(made), busy_seconds=len(ready) * tick,
            ready=ready, starting=tuple(starting),
        )  # fmt: skip
        target = scaler.decide(seen).target
        for number in range(len(ready) + len(starting), target):
            starting[f"r{number}"] = now + boot
    return now


def distinct_readers(plan: BatchPlan, options: Options, steps: int) -> float:
    """Return the number of readers behind the rows of a rank for some steps."""
    rng = np.random.default_rng(1)
    tasks, places = np.unique(plan.tasks, return_inverse=True)
    rows = options.batch_size // options.trainers
    readers = [rng.integers(options.readers, size=len(tasks))[places[:rows]] for _ in range(steps)]
    return float(len(np.unique(np.concatenate(readers))))


def fleet(options: Options) -> list[Row]:
    """Return all rows, along the way of an image."""
    manifest = made_up(options)
    order = build_order(manifest, StreamConfig(batch_size=options.batch_size,
                                               chunk_bytes=options.chunk_bytes), 1)  # fmt: skip
    leases, made = lease_traffic(options, order, manifest)
    plan, plan_seconds = plan_cost(options, order, manifest)
    beats = beat_traffic(options, plan.cursor)
    exchanges = leases.num_calls / options.seconds
    beat_calls = _BEATS_PER_SECOND * options.trainers
    plan_bytes = len(pickle.dumps(plan, 5))
    plan_calls = options.steps * options.trainers
    rank_rows = options.batch_size // options.trainers
    ahead = max(1, (1 << 30) // (rank_rows * _CROP_BYTES))
    steps_ahead = min(ahead, SequencerConfig(num_readers=1).steps_ahead)
    per_call = rank_rows * steps_ahead / distinct_readers(plan, options, steps_ahead)
    lease_cpu = leases.seconds / options.seconds
    beat_cpu = beats.seconds / beats.num_calls * beat_calls
    dumps = _seconds_of(lambda: pickle.dumps(plan, 5)) * plan_calls
    reader_out = options.trained_per_second / options.readers * _CROP_BYTES
    record = len(json.dumps({**_FIELDS, **plan.cursor.to_json()}))
    num_steps = options.images / options.batch_size
    return [
        Row("images trained on", options.trained_per_second, "1/s"),
        Row("images of the simulated readers", made, "1/s"),
        Row("global batches", options.steps, "1/s"),
        Row("bytes of a chunk", order.config.chunk_bytes, "B"),
        Row("from the bucket", options.trained_per_second * options.image_bytes, "B/s"),
        Row(
            "requests to the bucket",
            options.trained_per_second * options.image_bytes / order.config.chunk_bytes,
            "1/s",
        ),
        Row(
            "into a node of readers",
            options.trained_per_second
            * options.image_bytes
            * options.readers_per_node
            / options.readers,
            "B/s",
        ),
        Row("out of a node of readers", reader_out * options.readers_per_node, "B/s", 12.5e9),
        Row("out of a reader", reader_out, "B/s", options.take_bytes),
        Row("images in one call of a feed", per_call, ""),
        Row(
            "calls of feeds to a reader",
            options.trained_per_second / options.readers / per_call,
            "1/s",
            options.calls,
        ),
        Row(
            "into a node of trainers",
            options.trainers_per_node * options.trainer_rate * _CROP_BYTES,
            "B/s",
            12.5e9,
        ),
        Row("Control: exchanges with readers", exchanges, "1/s"),
        Row("Control: beats of trainers", beat_calls, "1/s"),
        Row("Control: calls for plans", plan_calls, "1/s"),
        Row("Control: calls in all", exchanges + beat_calls + plan_calls, "1/s", options.calls),
        Row("bytes of a report / 1", leases.request_bytes / leases.num_calls, "B"),
        Row("bytes of orders / 1", leases.answer_bytes / leases.num_calls, "B"),
        Row("bytes of a beat / 1", beats.request_bytes / beats.num_calls, "B"),
        Row("bytes of a directive / 1", beats.answer_bytes / beats.num_calls, "B"),
        Row("bytes of a plan", plan_bytes, "B"),
        Row("Control: bytes of plans, one copy per trainer", plan_bytes * plan_calls, "B/s", 3.1e9),
        Row(
            "Control: the same, one copy per node",
            plan_bytes * plan_calls / options.trainers_per_node,
            "B/s",
            3.1e9,
        ),
        Row("Control: the same, only the rows of a rank", plan_bytes * options.steps, "B/s", 3.1e9),
        Row("CPU of the lease table", lease_cpu, "s/s", 1.0),
        Row("CPU of one exchange", leases.seconds / leases.num_calls, "s"),
        Row("CPU of forming plans", plan_seconds * options.steps, "s/s", 1.0),
        Row("CPU of forming one plan", plan_seconds, "s"),
        Row("CPU of beats", beat_cpu, "s/s", 1.0),
        Row("CPU of pickling plans for every trainer", dumps, "s/s", 1.0),
        Row("from 4 readers to enough", seconds_to_scale(options), "s"),
        Row("steps of the whole run", num_steps, ""),
        Row("seconds of the whole run", options.images / options.trained_per_second, "s"),
        Row("metrics.jsonl of the whole run", record * num_steps, "B"),
        Row("a checkpoint (ResNet-50, SwAV)", options.state_bytes, "B"),
    ]


def _cpu_of_others() -> float:
    """Return the CPU seconds of all other threads."""
    return time.process_time() - time.thread_time()


def _seconds_of(do: Callable[[], Any]) -> float:
    began = time.thread_time()
    for _ in range(20):
        do()
    return (time.thread_time() - began) / 20


def main() -> None:
    """Compute once and print; mark numbers above their limit, and name the worst."""
    options = tyro.cli(Options)
    rows = fleet(options)
    if options.json:
        print(json.dumps([replace(row).__dict__ for row in rows]))
        return
    for row in rows:
        share = f"{row.number / row.limit:>8.0%} of {row.limit:,.4g}" if row.limit else ""
        print(f"{row.what:<46} {row.number:>18,.6g} {row.unit:<4}{share}")
    worst = max((row for row in rows if row.limit), key=lambda row: row.number / (row.limit or 1))
    print(f"\nfirst bottleneck: {worst.what}")


if __name__ == "__main__":
    main()
