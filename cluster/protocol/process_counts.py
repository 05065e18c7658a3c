"""Counters of one process, as it reports them to Control and the driver."""

from dataclasses import dataclass

from shards.metric import PREFIX, Readings

# Prefix of the metrics that a single process serves: no rule that sums over a run may match it.
PROCESS_PREFIX = f"{PREFIX}process_"


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """Counters of a process since it started. No two processes share a `source`."""

    source: str
    counts: Readings
