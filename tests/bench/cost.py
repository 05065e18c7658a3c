"""Cost of the cluster: `python -m tests.bench.cost`.

1. The same images with the same number of readers: threads of one process, and Ray actors with a
   feed, in turn. The other readers wait meanwhile. CPU seconds are those of all processes; they are
   also valid on a busy machine.
2. Sizes of transfers, and bytes held by readers and by the feed.
3. CPU of Control per second without finished work, with many readers that request leases.
"""

import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import psutil
import ray
import tyro

from cluster.driver.ray_session import ray_session
from cluster.protocol.messages import ReaderReport
from cluster.trainers.batch_feed import BatchFeed
from shards.crops.native import NativeEngine
from shards.crops.recipe import swav
from shards.crops.sample_cropper import CropJob
from shards.records import ChunkCrops
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.bench.made_shards import shards_or_made
from tests.cluster.data_path import DataPath

# Readers rest soon: what they may hold ahead is small.
_MAX_BYTES = 512 << 20
_REST_SECONDS, _POLL_SECONDS = 0.7, 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """`images` a measurement, of `shards` or of `made` images of `side` pixels; `idle_readers` is
    for part 3."""

    shards: str | None = None
    readers: int = 2
    images: int = 2048
    times: int = 5
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


class Source(ABC):
    """Batches of one of the two ways. Its readers work ahead, and then wait for the trainer."""

    @abstractmethod
    def next(self) -> int:
        """Take the next batch; return its number of images."""

    @abstractmethod
    def finished(self) -> int:
        """Return the images that readers have finished."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """Return CPU seconds of all processes that take part."""

    def rest(self) -> tuple[int, float]:
        """Wait until the readers wait; return the images so far, and when the last one came."""
        found, since = self.finished(), time.monotonic()
        while time.monotonic() - since < _REST_SECONDS:
            time.sleep(_POLL_SECONDS)
            if (now := self.finished()) != found:
                found, since = now, time.monotonic()
        return found, since

    def measure(self, images: int) -> Speed:
        """Take images without a pause, and measure from rest to rest: no work is left out, and
        none of another time is counted."""
        before, _ = self.rest()
        cpu, began, taken = self.cpu_seconds(), time.monotonic(), 0
        while taken < images:
            taken += self.next()
        after, ended = self.rest()
        return Speed(after - before, ended - began, self.cpu_seconds() - cpu)


class ThreadSource(Source):
    """Threads of this process."""

    def __init__(
        self, manifest: Manifest, job: CropJob, stream: StreamConfig, num_readers: int
    ) -> None:
        self._finished = 0
        self._threads = ThreadReaders(manifest, job, num_readers, self._count)
        order = build_order(manifest, stream, 0)
        self._batches = iter(BatchStream(order, stream, job.admission, self._threads.submit))

    def _count(self, crops: ChunkCrops) -> None:
        self._finished += int(crops.kept.sum())

    def next(self) -> int:
        return len(next(self._batches))

    def finished(self) -> int:
        return self._finished

    def cpu_seconds(self) -> float:
        return time.process_time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.__exit__()


class ActorSource(Source):
    """Control, reader actors and a feed."""

    def __init__(self, path: DataPath, feed: BatchFeed) -> None:
        self._path, self._feed, self._step = path, feed, 0
        self.max_held = 0.0

    def next(self) -> int:
        batch = self._feed.next()
        self._step += 1
        self._path.control.committed.remote(self._step)
        self.max_held = max(self.max_held, self._feed.status()["held_bytes"])
        return len(batch)

    def finished(self) -> int:
        return int(self._path.tell("finished")["images"])

    def cpu_seconds(self) -> float:
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

    def figures(self, images: int) -> dict[str, float]:
        """Return sizes of transfers, and bytes held, after `images` images."""
        fed, status = self._feed.status(), self._path.tell("status")
        return {
            "MB per call": fed["taken_bytes"] / fed["calls"] / 1e6,
            "calls of the feed per image": fed["calls"] / images,
            "max MB held by readers": status["max_held"] / 1e6,
            "max MB held or in progress in the feed": self.max_held / 1e6,
            "messages of readers per image": status["exchanges"] / images,
            "CPU ms of Control per image": 1000 * status["cpu_seconds"] / images,
        }


@contextmanager
def sources(
    manifest: Manifest, job: CropJob, stream: StreamConfig, num_readers: int
) -> Iterator[tuple[ThreadSource, ActorSource]]:
    """Yield both ways to get the same images; all readers are started, and at rest."""
    with (
        ThreadSource(manifest, job, stream, num_readers) as threads,
        DataPath(manifest, job, stream, num_readers, steps_ahead=16) as path,
        path.feed() as feed,
    ):
        for name in path.readers:
            path.started(name)
        feed.enter(0, 1, 0)
        yield threads, ActorSource(path, feed)


def compare(manifest: Manifest, job: CropJob, stream: StreamConfig, options: Options) -> None:
    """Measure both ways in turn, and print each pair and the medians."""
    print(f"{'':<10} {'images/s':>12} {'CPU ms per image':>18}")
    with sources(manifest, job, stream, options.readers) as both:
        pairs = []
        for source in both:
            source.next()
            source.rest()
        for _ in range(options.times):
            threads, actors = (source.measure(options.images) for source in both)
            pairs.append((actors.rate / threads.rate, threads.cpu_ms / actors.cpu_ms))
            for name, speed in (("threads", threads), ("actors", actors)):
                print(f"{name:<10} {speed.rate:>12.1f} {speed.cpu_ms:>18.2f}", flush=True)
        by_rate, by_cpu = (statistics.median(ratios) for ratios in zip(*pairs, strict=True))
        print(f"actors: {by_rate:.1%} of the rate, {by_cpu:.1%} with equal CPU (medians)")
        for name, figure in both[1].figures(both[1].finished()).items():
            print(f"{name:<44} {figure:.3f}")


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
    stream = StreamConfig(batch_size=options.batch_size, max_bytes=_MAX_BYTES)
    with (
        shards_or_made(options.shards, options.made, options.side) as shards,
        ray_session("local", options.readers, stream.max_bytes),
    ):
        manifest = open_manifest(shards, RangeReader())
        compare(manifest, job, stream, options)
        if options.idle_readers:
            print(f"{options.idle_readers} idle readers:")
            for name, figure in idle(manifest, job, stream, options).items():
                print(f"  {name:<42} {figure:.4f}")


if __name__ == "__main__":
    main()
