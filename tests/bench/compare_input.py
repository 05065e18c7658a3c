"""The input path beside others: `python -m tests.bench.compare_input --shards 'web/*.tar'`.

Measures `tests.bench.input` on threads and on Ray, the same in a checkout of another commit
(`--against`), webdataset with torchvision on Pillow, and decoding alone: each in its own process,
in turn, several times. Machines drift, so medians and ratios of medians count.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Options:
    """`shards` is a pattern of plain tars of JPEGs; `images` are those of one measurement.

    `against_images` is the name of the option --images in the other checkout. `decoded` and
    `peer_images`: the same for decoding alone, and for webdataset, which is slower.
    """

    shards: str
    against: Path | None = None
    against_images: str = "--images"
    pairs: int = 5
    readers: int = 2
    images: int = 2048
    peer_images: int = 512
    decoded: int = 8192
    json: bool = False


def commands(options: Options) -> dict[str, tuple[list[str], Path]]:
    """Return command and folder of every measurement."""
    here = Path.cwd()
    found: dict[str, tuple[list[str], Path]] = {}
    for name, folder in (("", here), ("other ", options.against)):
        if folder is None:
            continue
        for where in ("threads", "ray"):
            words = ["-m", "tests.bench.input", "--json", "--shards", options.shards]
            words += ["--where", where, "--readers", str(options.readers)]
            option = options.against_images if name else "--images"
            found[name + where] = ([*words, option, str(options.images)], folder)
    for way, images in (("webdataset", options.peer_images), ("decode", options.decoded)):
        words = ["-m", "tests.bench.peering.swav_views", way, options.shards]
        found[way] = ([*words, str(options.readers), str(images)], here)
    return found


def rate(command: list[str], folder: Path) -> float:
    """Run one measurement; return its images a second."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=_SECONDS,
        check=True,
    )
    first = next(iter(json.loads(done.stdout.splitlines()[-1]).items()))
    assert first[0].endswith("_per_second")
    return float(first[1])


def main() -> None:
    """Measure all in turn and print medians, ranges and ratios to the first."""
    options = tyro.cli(Options)
    ways = commands(options)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.pairs):
        for name in ways if turn % 2 == 0 else reversed(ways):
            rates[name].append(rate(*ways[name]))
            print(f"{turn + 1} {name:<14} {rates[name][-1]:8.1f}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    if options.json:
        print(json.dumps({"medians": medians, "rates": rates}))
        return
    for name, found in rates.items():
        first = medians["threads"] / medians[name]
        print(f"{name:<14} {medians[name]:8.1f} ({min(found):.1f}-{max(found):.1f})  x {first:.2f}")


if __name__ == "__main__":
    main()
