"""Messages between actors, as frozen records.

    reader  -- ReaderReport ------>  Control  -- ReaderOrders -->  reader     chunks to crop
    trainer -- HeartbeatMessage -->  Control  -- Directive ----->  trainer    generations
    trainer -- range of steps ---->  Control  -- Plans --------->  trainer    rows of each batch
    trainer -- rows of tasks ----->  reader   -- Rows ---------->  trainer    the crops, or where
                                                                              they lie

Crops never pass through Control: it receives headers only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.step_report import StepReport
from shards.metric import Readings
from shards.records import Chunk, ChunkCrops, Cursor, Reject, ShardInfo, Turn, bytes_of
from shards.shared_file import FileName

Role = Literal["reader", "trainer"]
GroupRows = NDArray[np.uint8] | tuple[NDArray[np.uint8], ...]


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """A `ChunkCrops` without its crops: what the sample order needs (see `ChunkResult`).

    `num_bytes` is the size of the crops in the memory of the reader that holds them.
    """

    chunk: Chunk
    epoch: int
    offsets: NDArray[np.int64]
    kept: NDArray[np.bool_]
    rejects: tuple[Reject, ...]
    num_bytes: int
    read_seconds: float = 0.0
    crop_seconds: float = 0.0
    num_unselected: int = 0
    needs_walk: bool = False
    crashed_images: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, crops: ChunkCrops) -> "ChunkHeader":
        return cls(
            crops.chunk,
            crops.epoch,
            crops.offsets,
            crops.kept,
            crops.rejects,
            crops.num_bytes,
            crops.read_seconds,
            crops.crop_seconds,
            crops.num_unselected,
            crops.needs_walk,
            crops.crashed_images,
            crops.labels,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """Right of a reader to crop the chunk of `task`.

    `task` is a number within the life of one Control; `epoch` rises with every lease of the run, so
    the newer one of two leases of a task has the larger epoch. `watched`: a reader that may have
    cropped the chunk died, so Control must know when it begins and ends. `isolated`: several
    readers died over it, and it is cropped in a child process.
    """

    term: int
    task: int
    epoch: int
    shard: ShardInfo
    turn: Turn
    isolated: bool = False
    watched: bool = False


@dataclass(frozen=True, slots=True)
class FinishedLease:
    """Result of a lease: a header, or an error that every other reader would meet, too."""

    task: int
    epoch: int
    header: ChunkHeader | None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderReport:
    """Report of a reader; its counters are cumulative since it started.

    A reader has one report under way at a time, and its name is never used again. The report is
    complete, so any answer may be lost: a lease that it does not name is sent again. Results in
    `finished` are repeated until an answer came; then their tasks stand in `held`: tasks whose
    crops lie in its memory, `held_bytes` together, until they are released. `current_task` is being
    cropped; its bytes were read before, since slow stores have time-outs of their own. `waiting`
    are tasks of leases that were not begun, in order. `wanted` is how many more leases it can take,
    at least 1 if it is idle; leases that it neither names nor wants go to other readers. `counts`
    are for /metrics only, and come about once a second.
    """

    reader: str
    term: int
    finished: tuple[FinishedLease, ...] = ()
    current_task: int | None = None
    waiting: tuple[int, ...] = ()
    wanted: int = 0
    held: tuple[int, ...] = ()
    held_bytes: int = 0
    memory_bytes: int = 0
    busy_seconds: float = 0.0
    counts: Readings = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOrders:
    """Answer of Control to a reader: new leases, crops to drop, and when to report again.

    A lease that the reader has may come again, with the same epoch. Leases in `drop` (task, epoch)
    are invalid, up to this epoch. `release` lists tasks of `held` whose crops are not needed: they
    were trained on, or those of another reader count. `leave`: begin nothing more, and give back
    leases that were not begun; the reader hands out its crops until they were trained on, and then
    it is done (`left`).
    """

    term: int
    leases: tuple[Lease, ...] = ()
    release: tuple[int, ...] = ()
    drop: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.2
    leave: bool = False


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A global batch, by reference. It does not depend on the number of ranks.

    `step` counts from 0: training on it finishes step `step + 1`. `ids` (G, 2) int64, `epochs` (G,)
    int64 and `labels` (G,) int64 as in `CropBatch`. `tasks` (G,) int64 and `rows` (G,) int64 locate
    the crops of each sample: row `rows[i]` among the kept samples of task `tasks[i]`. `cursor` is
    the position after the batch.
    """

    step: int
    ids: NDArray[np.int64]
    epochs: NDArray[np.int64]
    tasks: NDArray[np.int64]
    rows: NDArray[np.int64]
    cursor: Cursor
    rejects: tuple[Reject, ...]
    num_unselected: int
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Plans:
    """Consecutive plans, and the names of the readers that hold their tasks now.

    A task without a holder is being cropped again; request it later. Tasks are numbered within a
    `term`. Without plans: there are none yet, or none any more.
    """

    term: int
    plans: tuple[BatchPlan, ...]
    holders: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Borrower:
    """Process `pid` of a trainer, which can read crops in the memory of readers of its `node`."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True, eq=False)
class LentRows:
    """N rows of one view group in the shared file of a reader: places (N,), and a row's shape."""

    places: NDArray[np.int64]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.places) * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Loan:
    """Lent rows lie in this file. They stay there until the trainer has returned the number."""

    number: int
    file: FileName


@dataclass(frozen=True, slots=True)
class Rows:
    """Crops that a feed requested from a reader by `take(term, ((task, rows), ...))`.

    `crops` holds for every view group the N rows (V, S, S, 3) uint8 in the order of the request, as
    one array, as a tuple of N arrays, or as places of a `loan`. The reader does not hold the
    `missing` tasks; their rows are left out. A reader that only verifies gives one array (N,) of
    `ImageHeader` instead; the feed crops them.
    """

    crops: tuple[GroupRows | LentRows, ...]
    missing: tuple[int, ...] = ()
    loan: Loan | None = None

    @property
    def num_bytes(self) -> int:
        return sum(
            group.num_bytes
            if isinstance(group, LentRows)
            else bytes_of((group,) if isinstance(group, np.ndarray) else group)
            for group in self.crops
        )


Phase = Literal["starting", "ready", "joining", "running", "broken", "left"]
Doing = Literal["", "data", "step", "peers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerUsage:
    """Memory of a trainer and the batches that it holds; `device_bytes` of its GPU, by kind."""

    memory_bytes: int = 0
    held_bytes: int = 0
    limit_bytes: int = 0
    batches_ready: int = 0
    device_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatMessage:
    """State of a trainer, sent twice a second and at every change.

    A thread of its own sends it, but `doing` and `phase` are those of the training thread, so that
    a hanging trainer does not look alive. Only `broken` may be sent for a training thread that is
    still in a long step, some time after Control ended the generation.

    `committed` counts the finished steps of its state, -1 without a state; `cursor` is the position
    after them. `generation` is the current or last one. `address` is that of rank 0 while a
    generation joins. `reports` are the steps that Control has not acknowledged. `step_seconds` and
    `wait_seconds` are totals of steps and of waits for data. `doing`: the training thread waits for
    data, computes its own part of a step, or waits for its peers. From that Control tells a hanging
    trainer from those that wait for it. `reason` belongs to the phase `broken`.
    """

    member: str
    term: int
    phase: Phase
    generation: int
    committed: int
    cursor: Cursor | None = None
    address: str = ""
    node: str = ""
    reports: tuple[StepReport, ...] = ()
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    doing: Doing = ""
    reason: str = ""
    usage: TrainerUsage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """Answer of Control to a heartbeat: the generation to join, or to leave.

    Generations up to `over` cannot go on: undo the step under way and report `broken`. Join
    `generation` with these `members`, in order of rank, if it is newer than the current one;
    without members, stand by. `source` has the newest state; without one, rank 0 loads the state
    that Control has (`state`). `address` is that of rank 0, once it is known. `regroup`: finish the
    step under way, leave together with all others, report `ready`, and wait for the next
    generation. Reports up to `acknowledged` are safe; it goes back when steps are trained again.
    `stop`: finish the step, save the last state, and leave. `leave`: end at once; the member is not
    needed, or was declared dead.
    """

    term: int
    over: int = 0
    generation: int = 0
    members: tuple[str, ...] = ()
    source: str = ""
    address: str = ""
    regroup: bool = False
    acknowledged: int = -1
    stop: bool = False
    leave: bool = False


@dataclass(frozen=True, slots=True)
class StateRef:
    """State to use when no trainer has one: finished steps, and the ref of a LearnerState.

    `cursor` is the position after those steps. Without a ref, it is the initial state of a learner.
    `giver` is the trainer whose process owns the ref; it is lost with that process.
    """

    step: int
    refs: tuple[Any, ...] = ()
    cursor: Cursor | None = None
    giver: str = ""
