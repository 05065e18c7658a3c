"""Counters and snapshot of the lease table."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Loss = Literal["died", "hung", "silent", "left"]
Late = Literal["fenced", "gone", "term"]


@dataclass(slots=True)
class LeaseCounters:
    """Counts that only rise.

    `reissued`: leases without a result, by the end of their reader, or "returned" by it. `late`:
    refused results: the lease was over ("fenced"), the reader was given up ("gone"), or the message
    was for another Control ("term").

    `hedged`: second leases of slow chunks; `hedges_won`: those that finished first. `recropped`:
    finished chunks whose crops were lost before they were trained on. `given_up`: chunks over which
    too many readers died. `differing`: late results that differ from the first one, a fault of data
    or nodes.
    """

    reissued: Counter[str] = field(default_factory=Counter)
    late: Counter[Late] = field(default_factory=Counter)
    hedged: int = 0
    hedges_won: int = 0
    recropped: int = 0
    given_up: int = 0
    differing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningLease:
    """A lease that was granted `seconds` ago."""

    task: int
    epoch: int
    reader: str
    shard: str
    seconds: float
    isolated: bool
    hedge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSnapshot:
    """State of the table. `oldest` are the running leases granted longest ago, the oldest first.

    The crops of `num_held` tasks lie in readers, `held_bytes` together. `deadline` is how long a
    reader may crop a chunk of up to 16 MiB.
    """

    num_readers: int
    num_waiting: int
    num_running: int
    num_held: int
    held_bytes: int
    deadline: float
    oldest: tuple[RunningLease, ...]
