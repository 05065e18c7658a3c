"""Cost of the cluster: `python -m tests.bench.cost`.

1. The same images with the same number of readers: threads of one process, and Ray actors with a
   feed, alternating. Rates count images that readers finished. CPU seconds are those of all
   processes; they are also valid on a busy machine.
2. Sizes of transfers, and bytes held by readers and by the feed.
3. CPU of Control per second without finished work, with many readers that request leases.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
import tyro

from cluster.driver.ray_session import ray_session
from cluster.protocol.messages import ReaderReport
from shards.crops.native import NativeEngine
from shards.crops.recipe import swav
from shards.crops.sample_cropper import CropJob
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import pack
from shards.records import ChunkCrops
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.cluster.data_path import DataPath


@dataclass(frozen=True, kw_only=True)
class Options:
    """`images` per run, from `made` images of `side` pixels; `idle_readers` is for part 3."""

    readers: int = 2
    images: int = 1024
    times: int = 3
    made: int = 600
    side: int = 384
    batch_size: int = 64
    idle_readers: int = 200
    idle_seconds: float = 10.0


@dataclass(frozen=True)
class Speed:
    """Images that readers finished, wall seconds and CPU seconds."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_seconds / self.images


class Watch:
    """Measures finished images and CPU seconds since its creation."""

    def __init__(self, finished: Callable[[], int]) -> None:
        self._finished = finished
        self._start = (finished(), time.monotonic(), _cpu_seconds())

    def read(self) -> Speed:
        images, began, cpu = self._start
        return Speed(self._finished() - images, time.monotonic() - began, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Return CPU seconds of this process and its children, Ray included."""
    total = 0.0
    process = psutil.Process()
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def by_threads(manifest: Manifest, job: CropJob, stream: StreamConfig, options: Options) -> Speed:
    """Measure the stream with reader threads."""
    finished = 0

    def count(crops: ChunkCrops) -> None:
        nonlocal finished
        finished += int(crops.kept.sum())

    order = build_order(manifest, stream, 0)
    with ThreadReaders(manifest, job, options.readers, count) as threads:
        batches = iter(BatchStream(order, stream, job.admission, threads.submit))
        next(batches)
        watch = Watch(lambda: finished)
        for _ in range(options.images // options.batch_size):
            next(batches)
        return watch.read()


def by_actors(
    manifest: Manifest, job: CropJob, stream: StreamConfig, options: Options
) -> tuple[Speed, dict[str, Any]]:
    """Measure the same stream with Control, reader actors and a feed."""
    with DataPath(manifest, job, stream, options.readers, steps_ahead=16) as path:
        for name in path.readers:
            path.started(name)
        with path.feed() as feed:
            feed.enter(0, 1, 0)
            feed.next()
            watch = Watch(lambda: int(path.tell("status")["finished"]["images"]))
            before, held = path.tell("status"), 0.0
            for step in range(1, 1 + options.images // options.batch_size):
                feed.next()
                path.control.committed.remote(step)
                held = max(held, feed.status()["held_bytes"])
            speed, after, fed = watch.read(), path.tell("status"), feed.status()
    num_exchanges = after["exchanges"] - before["exchanges"]
    return speed, {
        "MB per call": fed["taken_bytes"] / fed["calls"] / 1e6,
        "calls of the feed per image": fed["calls"] / (speed.images or 1),
        "max MB held by readers": after["max_held"] / 1e6,
        "max MB held or in progress in the feed": held / 1e6,
        "messages of readers per second": num_exchanges / speed.seconds,
        "CPU ms of Control per image": 1000
        * (after["cpu_seconds"] - before["cpu_seconds"])
        / speed.images,
        "seconds the feed waited": fed["wait_seconds"],
    }


@ray.remote(num_cpus=0)
class Idlers:
    """Simulated readers that request leases and never finish one."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[int, ...]] = {}

    def ask(self, control: str, number: int, seconds: float) -> int:
        """Ask for work as often as Control wants it; how often that was."""
        actor = ray.get_actor(control)
        due = dict.fromkeys((f"idle{n}" for n in range(number)), 0.0)
        asked: dict[Any, str] = {}
        count = 0
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline:
            for name in [name for name, when in due.items() if when <= now]:
                del due[name]
                leases = self.waiting.get(name, ())
                report = ReaderReport(reader=name, term=1, waiting=leases, wanted=4 - len(leases))
                asked[actor.exchange.remote(report)] = name
                count += 1
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.02)
            for ref, orders in zip(ready, ray.get(ready), strict=True):
                name = asked.pop(ref)
                due[name] = time.monotonic() + orders.seconds
                tasks = (lease.task for lease in orders.leases)
                self.waiting[name] = (*self.waiting.get(name, ()), *tasks)
        return count


def idle(
    manifest: Manifest, job: CropJob, stream: StreamConfig, options: Options
) -> dict[str, Any]:
    """Measure the CPU seconds of Control per second without finished work."""
    with DataPath(manifest, job, stream, num_readers=0) as path:
        idlers = Idlers.remote()  # type: ignore[attr-defined]
        # The readers first take leases, which they keep.
        ray.get(idlers.ask.remote(path.name, options.idle_readers, 3.0))
        before, began = path.tell("status"), time.monotonic()
        count = ray.get(idlers.ask.remote(path.name, options.idle_readers, options.idle_seconds))
        seconds = time.monotonic() - began
        cpu = path.tell("status")["cpu_seconds"] - before["cpu_seconds"]
        ray.kill(idlers)
    return {
        "messages per second": count / seconds,
        "CPU seconds of Control per second": cpu / seconds,
        "CPU ms per message": 1000 * cpu / count,
    }


@contextmanager
def _made(options: Options) -> Iterator[Manifest]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        pack(entries_from_synthetic(options.made, seed=0, size=options.side), out)
        yield open_manifest(str(out), RangeReader())


def main() -> None:
    """Measure, and print a table."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = tyro.cli(Options)
    recipe = swav()
    job = CropJob(
        recipe=recipe,
        seed=0,
        admission=AdmissionConfig(),
        build_engine=partial(NativeEngine, recipe),
    )
    stream = StreamConfig(batch_size=options.batch_size)
    with _made(options) as manifest, ray_session("local", options.readers, stream.max_bytes):
        print(f"{'':<10} {'images/s':>12} {'CPU ms per image':>18}")
        pairs = []
        for _ in range(options.times):
            threads = by_threads(manifest, job, stream, options)
            actors, figures = by_actors(manifest, job, stream, options)
            pairs.append((actors.rate / threads.rate, threads.cpu_ms / actors.cpu_ms))
            for name, speed in (("threads", threads), ("actors", actors)):
                print(f"{name:<10} {speed.rate:>12.1f} {speed.cpu_ms:>18.2f}", flush=True)
        by_rate, by_cpu = (statistics.median(ratios) for ratios in zip(*pairs, strict=True))
        print(f"actors: {by_rate:.1%} of the rate, {by_cpu:.1%} with equal CPU (medians)")
        for name, figure in figures.items():
            print(f"{name:<44} {figure:.3f}")
        print(f"{options.idle_readers} idle readers:")
        for name, figure in idle(manifest, job, stream, options).items():
            print(f"  {name:<42} {figure:.4f}")


if __name__ == "__main__":
    main()
