"""Throughput of packing: `python -m tests.bench.pack FOLDER --workers 1 2`.

Each round packs the folder with every number of workers. Best and median are printed, listing
included. A first pack, which fills the page cache, is not counted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from shards.pack.pack import PackConfig, PackReport, pack
from shards.pack.sources.folder_entries import entries_from_folder


def measure(folder: Path, config: PackConfig, num_workers: int) -> tuple[float, PackReport]:
    """Return the seconds of one pack, and its report."""
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        report = pack(entries_from_folder(folder), f"{out}/shards", config, num_workers=num_workers)
        return time.monotonic() - began, report


def main() -> None:
    """Measure, and print one line per number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    options = parser.parse_args()
    config = PackConfig(samples_per_shard=options.samples_per_shard, max_bytes=1 << 26)
    measure(options.folder, config, 1)
    seconds: dict[int, list[float]] = {number: [] for number in options.workers}
    for _ in range(options.rounds):
        for number in options.workers:
            taken, report = measure(options.folder, config, number)
            seconds[number].append(taken)
    print(f"{report.num_samples:,} images, {report.num_bytes:,} bytes, {report.num_shards} shards")
    for number, taken in seconds.items():
        best, middle = min(taken), statistics.median(taken)
        rates = f"{report.num_samples / best:,.0f} images/s, {report.num_bytes / best / 1e6:,.0f}"
        print(
            f"{number} workers: best {best:.2f} s, median {middle:.2f} s of {len(taken)}; "
            f"at best {rates} MB/s"
        )


if __name__ == "__main__":
    main()
