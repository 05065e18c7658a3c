"""Process that packs a folder; it imports little, because drills start it many times."""

import sys
from pathlib import Path

from shards.pack.pack import PackConfig, pack
from shards.pack.sources.folder_entries import entries_from_folder

CONFIG = PackConfig(samples_per_shard=40)


def main(source: str, out: str, num_workers: str) -> None:
    """Pack `source` into `out`."""
    report = pack(entries_from_folder(Path(source)), out, CONFIG, num_workers=int(num_workers))
    print(f"found {report.num_found} of {report.num_shards}")


if __name__ == "__main__":
    main(*sys.argv[1:])
