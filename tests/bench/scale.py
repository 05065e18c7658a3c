"""Cost of a bucket of 100,000 shards and 10^10 samples: `python -m tests.bench.scale`.

The measurement starts with a made-up listing of names, lengths and versions. Bytes are allocations
of Python and numpy (tracemalloc), measured in a second pass, because tracing is slow.
"""

import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from shards.records import Cursor, ShardInfo
from shards.stream.batch_stream import build_order
from shards.stream.journal import Journal
from shards.stream.manifest import Manifest
from shards.stream.manifest_file import read_manifest, write_manifest
from shards.stream.mixture import parse_weights
from shards.stream.order import Order
from shards.stream.stream_config import StreamConfig

_SAMPLE_BYTES = 100_000
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """`samples` of 100 kB in `shards`; half of the shards are a second source."""

    shards: int = 100_000
    samples: int = 10**10
    batch_size: int = 4096
    json: bool = False


@dataclass(frozen=True)
class Row:
    """One step: its seconds (best of the repeats), and the bytes that it left in memory."""

    what: str
    seconds: float
    num_bytes: int


def measure(what: str, do: Callable[[], Any], repeats: int = 3) -> tuple[Row, Any]:
    """Run `do` a few times for its time, and once more for its memory."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = do()
        seconds.append(time.perf_counter() - began)
        del result
    tracemalloc.start()
    result = do()
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Row(what, min(seconds), num_bytes), result


def listing(options: Options) -> list[tuple[str, int, str, int]]:
    """Return (uri, length, version, source) of every shard, as from stores."""
    mean = options.samples * _SAMPLE_BYTES // options.shards
    rng = np.random.default_rng(_SEED)
    sizes = mean + rng.integers(-mean // 10, mean // 10, options.shards)
    return [
        (
            f"s3://bucket/{place % 2}/shard-{place // 2:08d}.tar",
            int(size),
            f"{place:032x}",
            place % 2,
        )
        for place, size in enumerate(sizes)
    ]


def open_rows(rows: list[tuple[str, int, str, int]]) -> Manifest:
    """Do the same as `open_manifest` on a listing, without probing shards."""
    shards = [ShardInfo(uri, size, version, source) for uri, size, version, source in rows]
    shards.sort(key=lambda shard: (shard.source, shard.uri))
    return Manifest(tuple(shards), float(_SAMPLE_BYTES))


def run(options: Options) -> tuple[list[Row], dict[str, Any]]:
    """Measure every step from a listing to the samples of a block."""
    rows: list[Row] = []

    def step(what: str, do: Callable[[], Any]) -> Any:
        row, result = measure(what, do)
        rows.append(row)
        return result

    listed = listing(options)
    manifest: Manifest = step(
        f"manifest of {options.shards:,} listed shards", lambda: open_rows(listed)
    )
    step("its digest", lambda: Manifest(manifest.shards, 1.0).digest)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        step("written as Parquet", lambda: write_manifest(manifest, path))
        parquet_bytes = path.stat().st_size
        step("read from Parquet", lambda: read_manifest(path))
    weights = [(0, parse_weights([0.7, 0.3]))]
    config = StreamConfig(batch_size=options.batch_size)
    order: Order = step(
        f"order of {options.samples:,} samples",
        lambda: build_order(manifest, config, _SEED, weights=weights),
    )
    blocks = order.num_chunks // order.config.chunks_per_block
    num_samples = round(order.config.chunks_per_block * order.config.chunk_bytes / _SAMPLE_BYTES)
    for name, block in (("first", 0), ("middle", blocks // 2), ("last", blocks - 1)):
        step(f"turns of the {name} block of an epoch", lambda block=block: order.block(block))
    step(
        f"slots of a block of {num_samples:,} samples", lambda: order.mix(blocks // 2, num_samples)
    )
    cursor = Cursor(
        manifest=manifest.digest,
        order=order.digest,
        block=blocks // 2,
        slot=num_samples // 2,
        num_samples=options.samples // 2,
    )

    def seek() -> list[Any]:
        """Compute the first turns from a saved cursor and a manifest."""
        saved = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
        journal = Journal(order.manifest, order.digest)
        journal.check(saved)
        return journal.amend(saved.block, order.block(saved.block))

    step("seek to a cursor in the middle", seek)
    facts = {
        "chunks": order.num_chunks,
        "chunk_bytes": order.config.chunk_bytes,
        "chunks_per_block": order.config.chunks_per_block,
        "blocks_per_epoch_about": blocks,
        "parquet_bytes": parquet_bytes,
        "cursor_bytes": len(json.dumps(cursor.to_json())),
    }
    return rows, facts


def main() -> None:
    """Measure once and print."""
    options = tyro.cli(Options)
    rows, facts = run(options)
    if options.json:
        steps = [{"what": r.what, "seconds": r.seconds, "bytes": r.num_bytes} for r in rows]
        print(json.dumps({"steps": steps, **facts}))
        return
    for row in rows:
        print(f"{row.what:<46} {row.seconds:>12.6f} s {row.num_bytes:>14,} bytes")
    for name, value in facts.items():
        print(f"{name:<46} {value:>14,}")


if __name__ == "__main__":
    main()
