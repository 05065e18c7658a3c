"""What the lease table tells of itself: counts since it began, and how it stands at a moment."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Loss = Literal["died", "hung", "silent", "left"]
Late = Literal["fenced", "gone", "term"]


@dataclass(slots=True)
class LeaseCounters:
    """Counts that only rise. `reissued`: leases that did not come to their end, by what became of
    the reader, or "returned" by it; `late`: results that were refused, because the lease held no
    more ("fenced"), the reader was given up ("gone") or the word was for another Control ("term").

    `hedged`: second leases of what took long, of which `hedges_won` came first. `remade`: finished
    chunks whose crops were lost before they were trained on. `poisoned`: chunks that were given up.
    `differing`: late results that are not what was decided, which should never be.
    """

    granted: int = 0
    finished: int = 0
    reissued: Counter[str] = field(default_factory=Counter)
    late: Counter[Late] = field(default_factory=Counter)
    hedged: int = 0
    hedges_won: int = 0
    remade: int = 0
    poisoned: int = 0
    differing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningLease:
    """A lease that was given `seconds` ago, and begun, as far as is known, `in_hand_seconds`."""

    task: int
    epoch: int
    reader: str
    shard: str
    seconds: float
    in_hand_seconds: float | None
    isolated: bool
    hedge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSnapshot:
    """How the table stands. `oldest` are the leases given longest ago, the oldest first.

    `num_undecided` tasks have no result yet; `num_held` lie in readers, `held_bytes` of them;
    `deadline` is how long a chunk of up to 16 MiB may be in a reader's hands.
    """

    num_readers: int
    num_waiting: int
    num_running: int
    num_undecided: int
    num_held: int
    held_bytes: int
    p95_seconds: float | None
    deadline: float
    oldest: tuple[RunningLease, ...]
