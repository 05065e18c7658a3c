"""What the lease table keeps: tasks, leases of them, readers that have those, and how they end."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.errors import NotReproducible, ReadersLost
from cluster.protocol.lease_counters import RunningLease
from cluster.protocol.messages import ChunkHeader, Lease
from shards.records import ShardInfo, Turn
from shards.redaction import redact

# Times hold for chunks up to this size; a compressed tar is one chunk, of any size.
_UNIT_BYTES = 16 << 20


@dataclass(slots=True, eq=False)
class Task:
    """A chunk asked for. It waits, or has leases (two when hedged), or a holder of its crops."""

    number: int
    shard: ShardInfo
    turn: Turn
    waits: bool = False
    leases: dict[int, "GivenLease"] = field(default_factory=dict)
    num_deaths: int = 0
    header: ChunkHeader | None = None
    holder: "LeasingReader | None" = None
    held_epoch: int = -1

    @property
    def units(self) -> float:
        """How many times the usual time it may take."""
        return max(1.0, (self.turn.chunk.stop - self.turn.chunk.start) / _UNIT_BYTES)


@dataclass(slots=True, eq=False)
class LeasingReader:
    """`leases` by task, as they were given; `begun`: since when `in_hand` is known to be."""

    name: str
    heard: float
    leases: dict[int, "GivenLease"] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    in_hand: "GivenLease | None" = None
    begun: float = 0.0


@dataclass(slots=True, eq=False)
class GivenLease:
    """A lease, and who has it since when; `hedge`: somebody else had one of the task already."""

    task: Task
    epoch: int
    reader: LeasingReader
    granted: float
    isolated: bool
    hedge: bool

    def told(self, term: int) -> Lease:
        """As the reader hears of it."""
        task = self.task
        watched = task.num_deaths > 0
        return Lease(term, task.number, self.epoch, task.shard, task.turn, self.isolated, watched)

    def shown(self, now: float) -> RunningLease:
        """As somebody sees it who looks."""
        in_hand = self.reader.in_hand is self
        return RunningLease(
            task=self.task.number,
            epoch=self.epoch,
            reader=self.reader.name,
            shard=redact(self.task.shard.uri),
            seconds=now - self.granted,
            in_hand_seconds=now - self.reader.begun if in_hand else None,
            isolated=self.isolated,
            hedge=self.hedge,
        )


def same_samples(ours: ChunkHeader, theirs: ChunkHeader) -> bool:
    """Whether two results of a turn hold the same samples, and crops of them in the same rows."""
    return (
        (ours.chunk, ours.epoch, ours.num_bytes) == (theirs.chunk, theirs.epoch, theirs.num_bytes)
        and (ours.num_unselected, ours.needs_walk) == (theirs.num_unselected, theirs.needs_walk)
        and np.array_equal(ours.offsets, theirs.offsets)
        and np.array_equal(ours.kept, theirs.kept)
        and _same_labels(ours.labels, theirs.labels)
        and [(reject.offset, reject.reason) for reject in ours.rejects]
        == [(reject.offset, reject.reason) for reject in theirs.rejects]
    )


def _same_labels(ours: NDArray[np.int64] | None, theirs: NDArray[np.int64] | None) -> bool:
    return ours is theirs or (
        ours is not None and theirs is not None and np.array_equal(ours, theirs)
    )


def readers_lost(task: Task) -> ReadersLost:
    """Too many readers died with this task in their hands."""
    return ReadersLost(
        f"{task.num_deaths} readers died one after the other, the last two while they cropped in "
        f"isolation, on {_place(task)}; look at the shard with `streamssl shards verify`, and at "
        "the memory of the nodes"
    )


def not_reproducible(task: Task) -> NotReproducible:
    """What was made again is not what was decided."""
    return NotReproducible(
        f"{_place(task)} gave other samples when they were made again, in epoch {task.turn.epoch}; "
        "what a chunk gives must not depend on who reads it: look whether all nodes see the same "
        "files, and have the same versions of decoders and predicates; then start the same command "
        "again"
    )


def _place(task: Task) -> str:
    chunk = task.turn.chunk
    return f"bytes {chunk.start}-{chunk.stop} of {redact(task.shard.uri)}"
