"""State of a run as one JSON object, served at `/state` for the live page and other clients.

The contract, version 1. Times are seconds of the wall clock since 1970; an unknown value is missing
or null, never 0. New members may be added; those below keep their meaning within a version.

    version    1
    now        when the object was made
    run        name, method, cluster ("none", "local", "auto", an address), num_steps, batch_size,
               began, ended (null while the run lives), error (the reason if it failed), how (how
               it ended, if that is known: a `RunEnding`)
    values     every number of /metrics by its whole series name, such as
               "streamssl_samples_total{stage=\"trained\"}"; of histograms _sum and _count. Totals
               go on when a run is started again
    before     the totals of earlier starts of the run, by the same names; without those of 0
    history    columns of equal length: "time", and each series whose metric is `charted`, by the
               same names; null where a series was not measured. At most 600 points since the run
               began, the first ones a second apart. `/state?since=T` gives only points after T
    thresholds by series name: {"low": number, "high": number}, either may be missing; a reading
               beyond them needs attention
    status     `cluster.protocol.run_status.Status` as an object, without `readings`, plus "at":
               when it was taken; its `seconds` members count back from there. null without cluster
    sections   data of further parts of the page, each under its own name

Members of `status`: `nodes` (node, address, labels, num_readers, num_trainers, cores, leaves_in,
is_head), `actors` (name, role, node, pid, phase, step, rank, doing, heartbeat_age, pool, pages),
`leases`, `decisions` and `recoveries` (seconds ago, what, why), `rates`, `wanted`, `scaling`,
`pending`, `failed`, `pages` (of Control and the driver, by role).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cluster.monitoring.history import History
from cluster.protocol.run_status import Status

VERSION = 1

RunEnding = Literal["done", "stopped", "diverged", "data", "failed", "killed", "unknown"]
"""How a run ended; data: it has too few samples, or its shards cannot be read."""

StateSection = Callable[[], Any]
"""Returns plain JSON values; called from the thread that answers."""
Thresholds = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Constant facts of a run. `thresholds`: see `/state`."""

    name: str
    method: str
    cluster: str
    num_steps: int
    batch_size: int
    began: float
    thresholds: Thresholds = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """End of a run: when, how if that is known, and the error if it failed."""

    at: float
    error: str = ""
    how: RunEnding | None = None


def state_of(
    run: RunInfo | None,
    values: Mapping[str, float],
    history: History,
    *,
    now: float,
    status: tuple[float, Status] | None = None,
    outcome: RunOutcome | None = None,
    sections: Mapping[str, StateSection] | None = None,
    before: Mapping[str, float] | None = None,
    since: float = 0.0,
) -> dict[str, Any]:
    """Return the object of `/state`. `status` comes with the time at which it was taken."""
    return {
        "version": VERSION,
        "now": now,
        "run": None if run is None else _run_fields(run, outcome),
        "values": dict(values),
        "before": dict(before or {}),
        "history": history.columns(since),
        "thresholds": {} if run is None else dict(run.thresholds),
        "status": None if status is None else {"at": status[0], **status_fields(status[1])},
        "sections": {name: section() for name, section in (sections or {}).items()},
    }


def status_fields(status: Status) -> dict[str, Any]:
    """Return a status as JSON values; its readings are among the values of the run."""
    return {name: value for name, value in asdict(status).items() if name != "readings"}


def to_json(state: Mapping[str, Any]) -> bytes:
    """Encode a state; NaN, which browsers refuse, raises ValueError."""
    return json.dumps(state, allow_nan=False, separators=(",", ":"), default=str).encode()


def _run_fields(run: RunInfo, outcome: RunOutcome | None) -> dict[str, Any]:
    found = {one.name: getattr(run, one.name) for one in fields(run) if one.name != "thresholds"}
    return found | {
        "ended": None if outcome is None else outcome.at,
        "error": None if outcome is None else outcome.error or None,
        "how": None if outcome is None else outcome.how,
    }
