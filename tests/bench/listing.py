"""Time to list many shards: `python -m tests.bench.listing`.

The shards are sparse files in a folder, and objects of an S3 server in this process, whose own work
is included. Folder, glob and brace pattern are measured.
"""

import json
import os
import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import pytest
import tyro

from shards.stores.retry import RetryConfig
from shards.stores.shard_listing import list_shards
from shards.stores.store_clients import Stores
from tests.stores import connect, put_many, s3_server, use_s3

_MADE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Number of files, and of objects."""

    files: int = 100_000
    objects: int = 5_000
    json: bool = False


def measure(root: str, number: int) -> dict[str, tuple[float, int]]:
    """Return (seconds, requests) for each way to name all shards."""
    patterns = {
        "folder": root,
        "glob": f"{root}/*.tar",
        "braces": f"{root}/{{{0:06d}..{number - 1:06d}}}.tar",
    }
    rows = {}
    for name, pattern in patterns.items():
        stores = Stores(RetryConfig())
        began = time.perf_counter()
        assert len(list_shards(pattern, stores)) == number
        seconds = time.perf_counter() - began
        rows[name] = (seconds, stores.counters.snapshot().requests)
    return rows


def main(options: Options) -> None:
    """Create the shards, list them, print the figures."""
    rows = {}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        for index in range(options.files):
            with open(f"{folder}/{index:06d}.tar", "wb") as file:
                os.truncate(file.fileno(), _MADE_BYTES)
        found = measure(folder, options.files).items()
        rows |= {f"{options.files} files by {way}": row for way, row in found}
        address = stack.enter_context(s3_server())
        use_s3(address, stack.enter_context(pytest.MonkeyPatch.context()))
        client = connect(address)
        client.create_bucket(Bucket="many")
        put_many("many", (f"{index:06d}.tar" for index in range(options.objects)), b"x")
        found = measure("s3://many", options.objects).items()
        rows |= {f"{options.objects} objects by {way}": row for way, row in found}
        client.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if options.json:
        print(json.dumps({"rows": rows, "peak_mib": peak}))
        return
    for what, (seconds, requests) in rows.items():
        print(f"{what:<26} {seconds:6.2f} s  {requests} requests")
    print(f"peak memory {peak} MiB, the S3 server included")


if __name__ == "__main__":
    main(tyro.cli(Options))
