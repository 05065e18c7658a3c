"""What is measured of a run beside its steps: what it is, where it runs, what it holds."""

import math
import os
import time
from pathlib import Path

from cluster.monitoring.metrics_hub import Metrics
from cluster.monitoring.node_costs import Bill
from cluster.monitoring.run_state import Limits, RunInfo
from cluster.monitoring.transport_readings import transport_readings
from cluster.protocol.metric import Key, Readings
from cluster.protocol.process_memory import device_bytes, resident_bytes
from shards.stream.batch_stream import BatchStream
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.run_config import RunConfig
from streamssl.evaluation.scores import newest_score
from streamssl.pretrain.metric_names import EXPORTED
from streamssl.runs.placement import Placement
from streamssl.runs.run_setup import Run
from streamssl.training.health import LIMITS


def watch_run(metrics: Metrics, run: Run, placement: Placement) -> None:
    """Tell `metrics` what the run is, and have it look at this process and its disks."""
    metrics.run = RunInfo(
        name=run.out.resolve().name,
        method=run.config.method_name,
        cluster=placement.cluster,
        num_steps=run.config.num_steps,
        batch_size=run.config.stream.batch_size,
        began=time.time(),
        thresholds=thresholds(run.config),
    )
    if placement.prices:
        metrics.bill = Bill(placement.prices)
    folders = {"out": run.out}
    if placement.cache is not None:
        folders["cache"] = Path(placement.cache.folder)

    def look() -> Readings:
        found: dict[Key, float] = {("steps_wanted",): run.config.num_steps}
        for what, folder in folders.items():
            found |= _disk(what, folder)
        if (score := newest_score(run.out)) is not None:
            found["knn_accuracy_ratio",] = score.headline / 100
        if resident := resident_bytes():
            found["memory_bytes", "driver"] = resident
        return found

    metrics.probes.append(look)


def watch_stream(
    metrics: Metrics, config: RunConfig, stream: BatchStream, threads: ThreadReaders
) -> None:
    """Have `metrics` look at what a run in this process holds, and at its one node."""
    batch, limit = config.stream.batch_size, config.stream.max_bytes

    def look() -> Readings:
        ahead, step_seconds = stream.buffered, metrics.mean_step_seconds()
        found: dict[Key, float] = {
            **transport_readings(threads.transport),
            ("batches_ready", "planned"): ahead.num_slots // batch,
            ("buffer_bytes", "reader"): ahead.num_bytes,
            ("buffer_limit_bytes", "reader"): limit,
            **{("device_memory_bytes", what): count for what, count in device_bytes().items()},
        }
        if step_seconds is not None:
            found["lead_seconds",] = ahead.num_slots / batch * step_seconds
        return found if metrics.bill is None else {**found, **metrics.bill.charge([{}]).counts}

    metrics.probes.append(look)


def thresholds(config: RunConfig) -> Limits:
    """Beyond what a person should look at a reading, by series; see docs/runbook.md."""
    found = {"prototypes_dead_ratio": {"high": 0.5}, "lead_seconds": {"low": 1.0}}
    for limit in LIMITS:
        side = "low" if limit.side == "below" else "high"
        found[EXPORTED[limit.reading][0]] = {side: limit.value}
    num_prototypes = getattr(config.method, "num_prototypes", None)
    if isinstance(num_prototypes, int):
        found["loss"] = found["assignment_entropy_nats"] = {"high": math.log(num_prototypes)}
    return {f"streamssl_{name}": limits for name, limits in found.items()}


def _disk(what: str, folder: Path) -> dict[Key, float]:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return {}  # it is made later, or was taken away
    return {
        ("disk_free_bytes", what): disk.f_bavail * disk.f_frsize,
        ("disk_size_bytes", what): disk.f_blocks * disk.f_frsize,
    }
