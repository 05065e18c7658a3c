"""Throughput from tars to crop batches: `python -m tests.bench.input --shards GLOB --readers 2`.

The figure includes ranged reads, cutting, header checks, decoding, all crops of the recipe (by
default SwAV's 2x224 + 6x96), the transfer to the trainer's process and the assembly of batches. It
excludes the start of readers, and training. Rates count images that readers finished, so work
ahead of the last batch counts once.
"""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import tyro

from cluster.driver.ray_session import ray_session
from cluster.trainers.batch_feed import BatchFeed
from shards.crops.recipe import moco_v2, swav
from shards.crops.sample_cropper import CropJob
from shards.records import ChunkCrops, CropBatch
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.run_config import RunConfig
from streamssl.recipes import RECIPES
from streamssl.runs.crop_job import build_engine
from tests.bench.made_shards import shards_or_made
from tests.cluster.data_path import DataPath

_MADE_IMAGES, _MADE_SIDE = 600, 384


@dataclass(frozen=True, kw_only=True)
class Options:
    """`shards` None makes 600 images of 384 pixels first. `where`: Ray actors or threads."""

    shards: str | None = None
    readers: int = 2
    images: int = 1024
    batch_size: int = 64
    recipe: Literal["swav", "moco-v2"] = "swav"
    engine: Literal["native", "dali-cpu", "dali-gpu"] = "native"
    where: Literal["ray", "threads"] = "ray"
    json: bool = False


class Tally:
    """Totals of what readers finished."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def add(self, result: ChunkCrops) -> None:
        self.count["images"] += int(result.kept.sum())
        self.count["rejects"] += len(result.rejects)
        self.count["bytes"] += result.num_bytes
        self.count["read_seconds"] += result.read_seconds  # type: ignore[assignment]
        self.count["crop_seconds"] += result.crop_seconds  # type: ignore[assignment]


Finished = Callable[[], Mapping[str, float]]


@contextmanager
def by_actors(
    manifest: Manifest, job: CropJob, config: StreamConfig, num_readers: int
) -> Iterator[tuple[Iterator[CropBatch], Finished]]:
    """Yield the batches of a feed with readers on Ray, and a function of their totals."""
    with (
        ray_session("local", num_readers, config.max_bytes),
        DataPath(manifest, job, config, num_readers, steps_ahead=16) as path,
    ):
        for name in path.readers:
            path.started(name)

        def batches(feed: BatchFeed) -> Iterator[CropBatch]:
            for step in itertools.count():
                yield feed.next()
                path.control.committed.remote(step + 1)

        with path.feed() as feed:
            feed.enter(0, 1, 0)
            yield batches(feed), lambda: path.tell("finished")


@contextmanager
def by_threads(
    manifest: Manifest, job: CropJob, config: StreamConfig, num_readers: int
) -> Iterator[tuple[Iterator[CropBatch], Finished]]:
    """Yield the batches of a stream with reader threads, and a function of their totals."""
    tally = Tally()
    order = build_order(manifest, config, seed=0)
    with ThreadReaders(manifest, job, num_readers, tally.add) as threads:
        stream = BatchStream(order, config, job.admission, threads.submit)
        yield iter(stream), lambda: dict(tally.count)


def measure(options: Options, shards: str) -> dict[str, object]:
    """Run the stream until `options.images` images are delivered; return the figures."""
    base: RunConfig = RECIPES["swav"]()
    recipe = swav() if options.recipe == "swav" else moco_v2()
    manifest = open_manifest(shards, RangeReader())
    config = StreamConfig(batch_size=options.batch_size)
    settings = RunConfig(
        **{name: getattr(base, name) for name in ("method", "backbone", "optim", "schedule")},
        crops=recipe,
        stream=config,
        engine=options.engine,
    )
    job = CropJob(
        recipe=recipe, seed=0, admission=AdmissionConfig(), build_engine=build_engine(settings)
    )
    readers = by_actors if options.where == "ray" else by_threads
    with readers(manifest, job, config, options.readers) as (batches, finished):
        delivered = 0
        began = time.monotonic()
        before = finished()
        for batch in batches:
            delivered += len(batch)
            if delivered >= options.images:
                break
        seconds = time.monotonic() - began
        count = {name: value - before.get(name, 0) for name, value in finished().items()}
    read_seconds, crop_seconds = count.pop("read_seconds"), count.pop("crop_seconds")
    return {
        "images_per_second": round(count["images"] / seconds, 1),
        "delivered_per_second": round(delivered / seconds, 1),
        "seconds": round(seconds, 2),
        **count,
        "delivered": delivered,
        "crop_ms_per_image_and_core": round(1000 * crop_seconds / max(1, count["images"]), 2),
        "read_share": round(read_seconds / max(1e-9, read_seconds + crop_seconds), 3),
        "readers": options.readers,
        "where": options.where,
        "engine": options.engine,
        "recipe": options.recipe,
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measure once and print."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = tyro.cli(Options)
    with shards_or_made(options.shards, _MADE_IMAGES, _MADE_SIDE) as shards:
        result = measure(options, shards)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
