"""How fast tars become crop batches: `python -m tests.bench.input --shards GLOB --readers 2`.

Everything is in the figure: ranged reads, cutting, header checks, decoding, all crops of the
recipe (SwAV's 2x224 + 6x96 unless told otherwise), the hand-over to the trainer's process and the
assembly of batches. Not in it: starting readers, training. Rates count what readers finished in
the time, so that work done ahead of the last batch is neither lost nor counted twice.
"""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from cluster.fixed_readers import RayReaders
from cluster.session import ray_session
from shards.admission import AdmissionConfig
from shards.chunks import CropJob
from shards.crops.recipe import moco_v2, swav
from shards.manifest import open_manifest
from shards.packing.entries import entries_from_synthetic
from shards.packing.pack import pack
from shards.records import ChunkCrops
from shards.stores.sources import RangeReader
from shards.stream import BatchStream, StreamConfig, Submit, ThreadReaders, build_order
from streamssl.config import RunConfig
from streamssl.recipes import RECIPES
from streamssl.run import build_engine

_MADE_PICTURES, _MADE_SIDE = 600, 384


@dataclass(frozen=True, kw_only=True)
class Options:
    """`shards` None makes 600 pictures of 384 pixels first. `where`: Ray actors, or threads."""

    shards: str | None = None
    readers: int = 2
    pictures: int = 1024
    batch_size: int = 64
    recipe: Literal["swav", "moco-v2"] = "swav"
    engine: Literal["opencv", "dali-cpu", "dali-gpu"] = "opencv"
    where: Literal["ray", "threads"] = "ray"
    json: bool = False


class Tally:
    """What readers finished, and when the last of it came."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def add(self, result: ChunkCrops) -> None:
        self.count["pictures"] += int(result.kept.sum())
        self.count["rejects"] += len(result.rejects)
        self.count["bytes"] += result.num_bytes
        self.seconds["read"] += result.read_seconds
        self.seconds["crop"] += result.crop_seconds


def measure(options: Options, shards: str) -> dict[str, object]:
    """Run the stream until `options.pictures` pictures were delivered; figures as plain data."""
    base: RunConfig = RECIPES["swav"]()
    recipe = swav() if options.recipe == "swav" else moco_v2()
    manifest = open_manifest(shards, RangeReader())
    config = StreamConfig(batch_size=options.batch_size)
    order = build_order(manifest, config, seed=0)
    settings = RunConfig(
        **{name: getattr(base, name) for name in ("method", "backbone", "optim", "schedule")},
        crops=recipe,
        stream=config,
        engine=options.engine,
    )
    job = CropJob(
        recipe=recipe, seed=0, admission=AdmissionConfig(), build_engine=build_engine(settings)
    )
    tally = Tally()
    with ExitStack() as stack:
        if options.where == "ray":
            stack.enter_context(ray_session("local", options.readers, config.max_bytes))
            readers = stack.enter_context(
                RayReaders(manifest, job, options.readers, on_crops=tally.add)
            )
            while len(readers.pids()) < options.readers:
                time.sleep(0.1)
            submit: Submit = readers.submit
        else:
            threads = ThreadReaders(manifest, job, options.readers, tally.add)
            submit = stack.enter_context(threads).submit
        delivered = 0
        began = time.monotonic()
        for batch in BatchStream(order, config, AdmissionConfig(), submit):
            delivered += len(batch)
            if delivered >= options.pictures:
                break
        seconds = time.monotonic() - began
        finished = dict(tally.count)
    return {
        "pictures_per_second": round(finished["pictures"] / seconds, 1),
        "delivered_per_second": round(delivered / seconds, 1),
        "seconds": round(seconds, 2),
        **finished,
        "delivered": delivered,
        "crop_ms_per_picture_and_core": round(
            1000 * tally.seconds["crop"] / max(1, tally.count["pictures"]), 2
        ),
        "read_share": round(
            tally.seconds["read"] / max(1e-9, tally.seconds["read"] + tally.seconds["crop"]), 3
        ),
        "readers": options.readers,
        "where": options.where,
        "engine": options.engine,
        "recipe": options.recipe,
        "cores": os.cpu_count(),
    }


@contextmanager
def _shards(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        pack(entries_from_synthetic(_MADE_PICTURES, seed=0, size=_MADE_SIDE), out)
        yield str(out)


def main() -> None:
    """Measure once and print."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = tyro.cli(Options)
    with _shards(options.shards) as shards:
        result = measure(options, shards)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
