"""What the actors tell each other: the frozen records of the control plane.

    reader  -- ReaderReport -->  Control  -- ReaderOrders -->  reader     chunks to crop
    trainer -- Beat --------->   Control  -- Directive ---->   trainer    who trains with whom
    trainer -- asks --------->   Control  -- Plans -------->   trainer    what makes a batch
    trainer -- rows --------->   reader   -- crops -------->   trainer    the crops themselves

Crops never pass through Control: it sees headers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.metric import Readings
from shards.records import Chunk, ChunkCrops, Cursor, Reject, ShardInfo, Turn


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """A `ChunkCrops` without its crops: all that the order must know (see `ChunkResult`).

    `num_bytes` is what the crops take in the memory of the reader that holds them.
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
    killers: tuple[str, ...] = ()
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
            crops.killers,
            crops.labels,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A reader may work on `task` until Control says otherwise.

    `task` numbers what was asked for in the life of one Control; `epoch` rises with every lease of
    the run, so of two leases of a task the newer one has the larger epoch. `watched`: somebody died
    who may have had it in hand, so that Control must have heard when it is begun and when it ends.
    `isolated`: others died with it in hand.
    """

    term: int
    task: int
    epoch: int
    shard: ShardInfo
    turn: Turn
    isolated: bool = False
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of a lease: a header, or an error that no other reader would be spared."""

    task: int
    epoch: int
    header: ChunkHeader | None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderReport:
    """What a reader says when it asks for work; counters are cumulative since it started.

    A reader has one report under way at a time, and its name is never used again. The report is
    all that it knows, so that any answer may be lost: a lease that it does not name is given again.
    `finished` are repeated until an answer came; then they stand in `held`: the tasks whose crops
    lie in its memory, `held_bytes` of them, until they are released. `in_hand` is the task that is
    being cropped, since `in_hand_seconds`; its bytes are there, for slow stores have time-outs of
    their own. `waiting` are leases that it has not begun, in order. `wanted`: how many more it
    could take, at least 1 where it has nothing to do; leases that it neither names nor wants go to
    others. `counts` are for /metrics alone,
    and come about once a second.
    """

    reader: str
    term: int
    finished: tuple[Finished, ...] = ()
    in_hand: int | None = None
    in_hand_seconds: float = 0.0
    waiting: tuple[int, ...] = ()
    wanted: int = 0
    held: tuple[int, ...] = ()
    held_bytes: int = 0
    memory_bytes: int = 0
    busy_seconds: float = 0.0
    counts: Readings = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOrders:
    """What Control answers: new leases, tasks whose crops may go, and when to ask again.

    A lease that the reader has already may come again, with the same epoch. `drop` are leases
    (task, epoch) that no longer hold, up to this epoch. `release` are those of `held` that nobody
    will ask for any more: they were trained on, or the crops of another reader count.
    `leave`: begin nothing more, and give back what was not begun; what is held is still handed out
    until it was trained on, and then the reader is done (`left`).
    """

    term: int
    leases: tuple[Lease, ...] = ()
    release: tuple[int, ...] = ()
    drop: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.2
    leave: bool = False


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A global batch, by reference. It does not depend on who trains, or in how many ranks.

    `step` counts from 0: training on it finishes step `step + 1`. `ids` (G, 2) int64 and `epochs`
    (G,) int64 as in `CropBatch`; `tasks` (G,) int64 and `rows` (G,) int64 say where each sample's
    crops lie: row `rows[i]` of what was kept of task `tasks[i]`. `cursor` is the place behind it.
    `labels` (G,) int64 as in `CropBatch`.
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
    """Consecutive plans, and the names of the readers that hold their tasks at this moment.

    A task without a holder is being made again; ask for it later. Tasks are numbered within a
    `term`. No plans: there are none yet, or none any more.
    """

    term: int
    plans: tuple[BatchPlan, ...]
    holders: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Rows:
    """Crops that a feed asked a reader for: `take(term, ((task, rows), ...))`.

    `crops`: for every view group a contiguous uint8 array (N, V, S, S, 3), the rows as they were
    asked for, those of `missing` tasks left out: this reader does not hold them. Of readers that
    only verify it is one array (N,) of `ImageHeader`, for the feed to crop.
    """

    crops: tuple[NDArray[np.uint8], ...]
    missing: tuple[int, ...] = ()


Phase = Literal["starting", "ready", "joining", "running", "broken", "left"]


Doing = Literal["", "data", "step", "peers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a trainer holds at a moment; `device_bytes` of its GPU, by what they are."""

    memory_bytes: int = 0
    held_bytes: int = 0
    limit_bytes: int = 0
    batches_ready: int = 0
    device_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a trainer says twice a second and at every change.

    It is said by a thread of its own, but `doing` is what the training thread does, and so is
    `phase`: who hangs must not seem to go on. Only `broken` is said for a thread in the middle of
    a long step, a while after Control said that the generation is over.

    `committed` counts the finished steps of the state it holds, and `cursor` is the place behind
    them; -1 while it holds none. `generation` is the one it is in, or was in last. `address` is
    where rank 0 of a joining generation waits for the others. `reports` are all that it has of
    steps beyond what Control acknowledged. `step_seconds` and `wait_seconds` add up since it
    started: in steps, and in waiting for data. `doing`: where its training thread is at this
    moment, waiting for data, in its own part of a step, or waiting for its peers; from that Control
    tells who hangs from those who wait for it. A reason belongs to the phase `broken`.
    """

    member: str
    term: int
    phase: Phase
    generation: int
    committed: int
    cursor: Cursor | None = None
    address: str = ""
    node: str = ""
    reports: tuple["StepRecord", ...] = ()
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    doing: Doing = ""
    reason: str = ""
    load: Load | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A finished step, as told to whoever keeps the log. `fields` is what the learner reports."""

    step: int
    cursor: Cursor
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """What Control wants of a trainer.

    Generations up to `over` cannot go on: give up the step under way, roll back, say `broken`.
    Join `generation` with these `members`, in order of rank, if it is newer than the one that the
    trainer is in; no members: stand by. `source` has the state that counts, of step `committed`
    (-1 and nobody: all load what `state` of Control gives). `address`: where rank 0 waits, once it
    does. `regroup`: finish the step under way, leave with all others at the same step, say `ready`,
    and wait for the next generation. `acknowledged`: reports up to this step are safe; it goes back
    when steps are trained again. `stop`: finish the step, give the last state, and leave. `leave`:
    end at once; the member is not needed, or was given up as dead.
    """

    term: int
    over: int = 0
    generation: int = 0
    members: tuple[str, ...] = ()
    source: str = ""
    committed: int = -1
    address: str = ""
    regroup: bool = False
    acknowledged: int = -1
    save: int = -1
    stop: bool = False
    leave: bool = False
