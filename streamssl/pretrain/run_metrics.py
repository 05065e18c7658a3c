"""Metrics of a run besides its steps: facts of the run, its disks, memory, input and cost."""

import os
from pathlib import Path

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.node_costs import NodeBill
from cluster.monitoring.steady_clock import steady_time
from cluster.protocol.process_memory import resident_bytes
from cluster.trainers.device_memory import device_bytes
from shards.input_metrics import store_readings
from shards.metric import Key, Readings
from shards.stream.batch_stream import BatchStream
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.run_config import RunConfig
from streamssl.evaluation.scores import newest_score
from streamssl.monitoring.run_facts import run_info
from streamssl.runs.placement import Placement
from streamssl.runs.run_setup import PreparedRun


def watch_run(hub: MetricsHub, run: PreparedRun, placement: Placement) -> None:
    """Set the facts of the run, and add probes of this process, its disks, and the cost."""
    hub.run = run_info(run.out, run.config, cluster=placement.cluster, began=steady_time())
    hub.values.set({("skipped_steps",): run.state.num_skipped})
    if placement.prices:
        _add_bill(hub, NodeBill(placement.prices), placement)
    folders = {"out": run.out}
    if placement.cache is not None:
        folders["cache"] = Path(placement.cache.folder)

    def probe() -> Readings:
        found: dict[Key, float] = {("steps_wanted",): run.config.num_steps}
        for what, folder in folders.items():
            found |= _disk(what, folder)
        if (score := newest_score(run.out)) is not None:
            found["knn_accuracy_ratio",] = score.headline / 100
        if resident := resident_bytes():
            found["memory_bytes", "driver"] = resident
        return found

    hub.probes.append(probe)


def _add_bill(hub: MetricsHub, bill: NodeBill, placement: Placement) -> None:
    if placement.cluster == "none":
        hub.probes.append(lambda: bill.charge([{}]).counts)
    else:
        hub.status_probes.append(bill.charge_status)


def watch_stream(
    hub: MetricsHub, config: RunConfig, stream: BatchStream, threads: ThreadReaders
) -> None:
    """Add a probe of the readers and batches of a run in this process."""
    batch, limit = config.stream.batch_size, config.stream.max_bytes

    def probe() -> Readings:
        ahead, step_seconds = stream.buffered, hub.mean_step_seconds()
        found: dict[Key, float] = {
            **store_readings(threads.transport),
            ("batches_ready", "planned"): ahead.num_slots // batch,
            ("buffer_bytes", "reader"): ahead.num_bytes,
            ("buffer_limit_bytes", "reader"): limit,
            **{("device_memory_bytes", what): count for what, count in device_bytes().items()},
        }
        if step_seconds is not None:
            found["lead_seconds",] = ahead.num_slots / batch * step_seconds
        return found

    hub.probes.append(probe)


def _disk(what: str, folder: Path) -> dict[Key, float]:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return {}  # not made yet, or removed
    return {
        ("disk_free_bytes", what): disk.f_bavail * disk.f_frsize,
        ("disk_size_bytes", what): disk.f_blocks * disk.f_frsize,
    }
