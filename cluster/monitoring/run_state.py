"""`/state`: how a run stands, as one JSON object, for the live page and whoever else looks.

The contract, version 1. Times are seconds of the wall clock since 1970; what is not known is
missing or null, never 0. New members may come; those below keep their meaning within a version.

    version    1
    now        when this was made
    run        name, method, cluster ("none", "local", "auto", an address), num_steps, batch_size,
               began, ended (null while it runs), error (why it ended, if it failed)
    values     every number of /metrics by its whole series name, such as
               "streamssl_samples_total{stage=\"trained\"}"; of histograms _sum and _count
    history    columns of equal length: "time", and the series of `HISTORY` by the same names; null
               where a series was not measured. At most 600 points from the beginning of the run on,
               the first ones a second apart. `/state?since=T` gives only points after time T
    thresholds by series name: {"low": number, "high": number}, either may be missing: beyond them
               a person should look
    status     the run's `cluster.protocol.run_status.Status` as an object, without `readings`, plus "at": when
               it was taken; its `seconds` members count back from there. null without a cluster
    sections   what other parts of the page show, each under its own name: see their modules

Within `status`: `nodes` (node, address, labels, num_readers, num_trainers, cores, leaves_in,
is_head), `actors` (name, role, node, pid, phase, step, rank, doing, heard_seconds, pool, pages),
`leases`, `decisions` and `recoveries` (seconds ago, what, why), `rates`, `wanted`, `scaling`,
`pending`, `failed`, `pages` (of Control and the driver, by role).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cluster.monitoring.history import History
from cluster.monitoring.metric_catalogue import CATALOGUE
from cluster.protocol.run_status import Status

VERSION = 1
# The metrics that charts are made of; the others are of interest at the moment only.
HISTORY = (
    "samples", "rejects", "data_wait_seconds", "reader_busy_seconds", "reader_blocked_seconds",
    "bucket_bytes", "bucket_errors", "lead_seconds", "batches_ready", "buffer_bytes",
    "step_seconds", "step_phase_seconds", "train_step", "model_flops_utilization_ratio",
    "memory_bytes", "loss", "learning_rate", "gradient_norm", "queue_fill_ratio",
    "queue_age_steps", "queue_drift", "prototype_usage_ratio", "prototypes_dead_ratio",
    "assignment_entropy_nats", "loss_over_plateau_ratio", "collapsing", "effective_rank",
    "feature_std", "contrast_accuracy_ratio",
    "cosine", "label_accuracy_ratio", "knn_accuracy_ratio", "world_size", "actors",
    "actors_wanted", "nodes", "readers_lost", "trainers_lost", "node_cost_dollars",
)  # fmt: skip

Section = Callable[[], Any]
"""Gives plain JSON values; called from the thread that answers."""
Limits = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run is, as far as it does not change. `thresholds`: see `/state`."""

    name: str
    method: str
    cluster: str
    num_steps: int
    batch_size: int
    began: float
    thresholds: Limits = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """When a run ended, and why if it failed."""

    at: float
    error: str = ""


def state_of(
    run: RunInfo | None,
    values: Mapping[str, float],
    history: History,
    *,
    now: float,
    status: tuple[float, Status] | None = None,
    ended: Ended | None = None,
    sections: Mapping[str, Section] | None = None,
    since: float = 0.0,
) -> dict[str, Any]:
    """The object of `/state`. `status` comes with the time at which it was taken."""
    return {
        "version": VERSION,
        "now": now,
        "run": None if run is None else _run(run, ended),
        "values": dict(values),
        "history": history.columns(since),
        "thresholds": {} if run is None else dict(run.thresholds),
        "status": None if status is None else {"at": status[0], **plain(status[1])},
        "sections": {name: section() for name, section in (sections or {}).items()},
    }


def plain(status: Status) -> dict[str, Any]:
    """A status as JSON knows it; its readings are among the values."""
    return {name: value for name, value in asdict(status).items() if name != "readings"}


def charted(values: Mapping[str, float]) -> dict[str, float]:
    """Those of the values whose history is kept."""
    return {name: value for name, value in values.items() if name.partition("{")[0] in _CHARTED}


def to_json(state: Mapping[str, Any]) -> bytes:
    """As it is sent: no NaN, which browsers refuse."""
    return json.dumps(state, allow_nan=False, separators=(",", ":"), default=str).encode()


def _run(run: RunInfo, ended: Ended | None) -> dict[str, Any]:
    found = {one.name: getattr(run, one.name) for one in fields(run) if one.name != "thresholds"}
    return found | {
        "ended": None if ended is None else ended.at,
        "error": None if ended is None else ended.error or None,
    }


def _charted() -> frozenset[str]:
    names = (CATALOGUE[name] for name in HISTORY)
    return frozenset(
        name for metric in names for name in metric.exposed_names if not name.endswith("_bucket")
    )


_CHARTED = _charted()
