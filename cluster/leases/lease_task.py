"""Records of the lease table: tasks, their leases, readers, and the errors that end a task."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.errors import NotReproducible, ReadersLost
from cluster.protocol.lease_counters import RunningLease
from cluster.protocol.messages import ChunkHeader, Lease
from shards.records import ShardInfo, Turn
from shards.redaction import redact

# Deadlines are for chunks up to this size; a compressed tar is one chunk, of any size.
_UNIT_BYTES = 16 << 20


@dataclass(slots=True, eq=False)
class ChunkTask:
    """A requested chunk. It waits, or has leases (two if hedged), or a holder of its crops."""

    number: int
    shard: ShardInfo
    turn: Turn
    waits: bool = False
    leases: dict[int, "ActiveLease"] = field(default_factory=dict)
    num_deaths: int = 0
    header: ChunkHeader | None = None
    holder: "ReaderRecord | None" = None
    held_epoch: int = -1

    @property
    def units(self) -> float:
        """Factor by which its deadlines exceed those of a chunk of up to 16 MiB."""
        return max(1.0, (self.turn.chunk.stop - self.turn.chunk.start) / _UNIT_BYTES)


@dataclass(slots=True, eq=False)
class ReaderRecord:
    """A reader: its last report, its leases by task, tasks that it holds, its current lease.

    `began` is when Control learned of the current lease.
    """

    name: str
    last_report: float
    leases: dict[int, "ActiveLease"] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    current: "ActiveLease | None" = None
    began: float = 0.0


@dataclass(slots=True, eq=False)
class ActiveLease:
    """A lease of a reader; `hedge`: another reader already had a lease of the task."""

    task: ChunkTask
    epoch: int
    reader: ReaderRecord
    granted: float
    isolated: bool
    hedge: bool

    def message(self, term: int) -> Lease:
        """Return the lease as it is sent to the reader."""
        task = self.task
        watched = task.num_deaths > 0
        return Lease(term, task.number, self.epoch, task.shard, task.turn, self.isolated, watched)

    def snapshot(self, now: float) -> RunningLease:
        return RunningLease(
            task=self.task.number,
            epoch=self.epoch,
            reader=self.reader.name,
            shard=redact(self.task.shard.uri),
            seconds=now - self.granted,
            isolated=self.isolated,
            hedge=self.hedge,
        )


def same_samples(ours: ChunkHeader, theirs: ChunkHeader) -> bool:
    """Return True if two results of a turn hold the same samples, and crops in the same rows."""
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


def readers_lost(task: ChunkTask) -> ReadersLost:
    """Return the error of a task over which too many readers died."""
    return ReadersLost(
        f"{task.num_deaths} readers died one after the other, the last two while they cropped in "
        f"isolation, on {_place(task)}; check the shard with `streamssl shards verify`, and the "
        "memory of the nodes"
    )


def not_reproducible(task: ChunkTask) -> NotReproducible:
    """Return the error of a task whose second result differs from the first."""
    return NotReproducible(
        f"{_place(task)} gave other samples when they were cropped again, in epoch "
        f"{task.turn.epoch}; the content of a chunk must not depend on the reader: check that all "
        "nodes see the same files and have the same versions of decoders and predicates; then "
        "start the same command again"
    )


def _place(task: ChunkTask) -> str:
    chunk = task.turn.chunk
    return f"bytes {chunk.start}-{chunk.stop} of {redact(task.shard.uri)}"
