"""Two passes over shards with images that crash decoders, in a process that may die of them.

`python -m tests.drills.poisoned SHARDS RUN` reads on threads and prints a line for every batch.
"""

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from shards.crops.crash_marks import CrashMarks
from shards.crops.sample_cropper import CropJob
from shards.records import ChunkCrops, CropBatch
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.journal import Journal
from shards.stream.lookahead import Submit
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.order import Order
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.shards.killers import RECIPE, build_refusing, killer_job, png, tar_of

NUM_BATCHES = 12
CONFIG = StreamConfig(batch_size=16, chunk_bytes=1 << 14, chunks_per_block=4)


def make_poisoned(folder: Path, *marks: int) -> Path:
    """Write three shards of 32 images; the marked images are in the first."""
    folder.mkdir()
    for shard in range(3):
        images = [png(32 * shard + number) for number in range(32)]
        for number, mark in enumerate(marks if shard == 0 else ()):
            images[5 + 9 * number] = png(number, mark)
        (folder / f"{shard}.tar").write_bytes(tar_of(images))
    return folder


def open_poisoned(folder: Path) -> tuple[Manifest, Order]:
    manifest = open_manifest(str(folder), RangeReader())
    return manifest, build_order(manifest, CONFIG, seed=0)


def line(batch: CropBatch) -> str:
    """Return digest, pixels and reject counts of a batch on one line."""
    pixels = hashlib.sha256(batch.crops[0].tobytes()).hexdigest()
    return f"{batch.digest} {pixels} {dict(batch.cursor.reject_reasons)}"


def lines(
    order: Order, submit: Submit[ChunkCrops], journal: Journal | None = None
) -> Iterator[str]:
    """Yield a line for each batch: see `line`."""
    stream = BatchStream(order, CONFIG, AdmissionConfig(), submit, journal=journal)
    for _, batch in zip(range(NUM_BATCHES), stream, strict=False):
        yield line(batch)


def expected(folder: Path) -> list[str]:
    """Return the lines of a run that rejects such images without a crash."""
    manifest, order = open_poisoned(folder)
    job: CropJob = killer_job(build_engine=partial(build_refusing, RECIPE))
    with ThreadReaders(manifest, job, 1) as threads:
        return list(lines(order, threads.submit))


def main() -> None:
    shards, run = map(Path, sys.argv[1:])
    manifest, order = open_poisoned(shards)
    with (
        CrashMarks(run / ".crashes") as marks,
        ThreadReaders(manifest, killer_job(), 2, marks=marks) as threads,
    ):
        for line in lines(order, threads.submit):
            print(line, flush=True)


if __name__ == "__main__":
    main()
