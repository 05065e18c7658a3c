"""Runs on clusters of several nodes: start, processes, and the checks of their steps."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.runs.crop_job import crop_job
from streamssl.runs.run_data import DataConfig, open_data
from tests.drills.processes import Run, started
from tests.ray_clusters import RayCluster, workers_of
from tests.tinyrun import read_log, tiny_swav

READERS, TRAINERS = "pool=readers", "pool=trainers"


def endless(**changes: Any) -> RunConfig:
    """Return a run without end, with batches that fit one, two and three ranks."""
    method = SwAVConfig(
        num_prototypes=12,
        dim=8,
        hidden_dim=16,
        freeze_steps=2,
        queue=QueueConfig(capacity=24, start_step=3),
    )
    stream = StreamConfig(batch_size=12, chunk_bytes=1 << 14, chunks_per_block=4)
    return tiny_swav(
        **{"num_steps": 1_000_000, "save_every": 1_000_000, "method": method, "stream": stream}
        | changes
    )


@contextmanager
def on_cluster(
    address: str,
    config: RunConfig,
    data: Path,
    out: Path,
    *more: object,
    program: str = "streamssl.cli",
) -> Iterator[Run]:
    """Start a run with readers and trainers in their pools of the cluster at `address`."""
    pools = ("--reader-pool", READERS, "--trainer-pool", TRAINERS)
    pools = () if "--reader-pool" in more else pools
    options = ("--cluster", "auto", *pools, *more)
    env = {"RAY_ADDRESS": address}
    with started(config, data, out, *options, env=env, program=program) as run:
        yield run


def actors(cluster: RayCluster, kind: str) -> list[psutil.Process]:
    """Return the processes of class 'Reader', 'Trainer' or 'Control' on all nodes."""
    nodes = [cluster.head, *cluster.nodes()]
    return [process for node in nodes for process in workers_of(node, kind)]


class FaultTimer:
    """Applies faults to a run, and prints how long notice and recovery took."""

    def __init__(self, run: Run, num_steps: int = 10) -> None:
        self._run, self._num_steps = run, num_steps

    def after(
        self,
        what: str,
        do: Callable[[], object],
        noticed: Callable[[], bool],
        recovered: Callable[[], bool] = lambda: True,
    ) -> None:
        """Do something, wait for its notice, for the recovery, and for some more steps."""
        began = time.monotonic()
        do()
        self._run.wait_for(noticed, f"notice of: {what}")
        seen = time.monotonic() - began
        self._run.wait_for(recovered, f"end of: {what}")
        done = time.monotonic() - began
        self.wait_for_steps()
        print(f"{what}: noticed after {seen:.1f} s, recovered after {done:.1f} s")

    def wait_for_steps(self) -> None:
        """Wait for `num_steps` more steps."""
        self._run.wait_for_step(self._run.last_step + self._num_steps)


def stop(run: Run) -> None:
    """Send one Ctrl-C; the run must save and end."""
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text
    assert "Traceback" not in run.text, run.text


def digests(config: RunConfig, data: Path, num: int) -> list[str]:
    """Return the digests of the first batches, from one undisturbed thread."""
    opened = open_data(DataConfig(patterns=(str(data),)), RangeReader())
    job = crop_job(config, opened, SourceConfig())
    order = build_order(opened.manifest, config.stream, config.seed)
    with ThreadReaders(opened.manifest, job, 1) as threads:
        stream = BatchStream(order, config.stream, config.admission, threads.submit)
        return [batch.digest for _, batch in zip(range(num), stream, strict=False)]


def check_steps(config: RunConfig, data: Path, out: Path) -> int:
    """Check that each step was done once, in order, on its own batch; return their number."""
    log = read_log(out)
    assert [fields["step"] for fields in log] == list(range(1, len(log) + 1))
    assert [fields["digest"] for fields in log] == digests(config, data, len(log))
    return len(log)
