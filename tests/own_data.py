"""Folders of users as docs/bring-your-own-data.md names them: small tars, images, tables."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.noise import noise
from tests.tars import make_tar

_NUM = 40
# The two blocks of zeros that end a tar, and their padding.
_END_BYTES = 10240


def make_own_data(root: Path) -> None:
    """Write every folder that the page names below `root`."""
    _write_shards(root)
    _write_folders(root)
    images = [{"bytes": _image(i), "path": f"{i}.png"} for i in range(_NUM)]
    table = pa.table({"image": images, "label": ["cat" if i % 2 else "dog" for i in range(_NUM)]})
    pq.write_table(table, root / "table.parquet")


def _write_shards(root: Path) -> None:
    for shard in range(3):
        numbers = range(32 * shard, 32 * shard + 32)
        pairs = [m for i in numbers for m in ((f"{i:06}.png", _image(i)), (f"{i:06}.cls", _cls(i)))]
        _write_tar(root / "shards" / f"{shard:05}.tar", pairs)
        _write_tar(root / "data [v2]" / f"{shard:05}.tar", pairs)
    everyone = range(_NUM)
    hidden = [m for i in everyone for m in ((f"._{i:03}.png", b"x"), (f"{i:03}.png", _image(i)))]
    _write_tar(root / "mac" / "a.tar", [*hidden, ("__MACOSX/a.png", b"x"), (".DS_Store", b"x")])
    frames = [(f"cam0/1633024800.{i:02}0000.png", _image(i)) for i in everyone]
    _write_tar(root / "frames" / "cam0.tar", frames)
    masks = [
        member
        for i in everyone
        for member in ((f"{i:03}.mask.png", _image(0)), (f"{i:03}.photo.png", _image(i)))
    ]
    _write_tar(root / "masks" / "a.tar", masks)
    images = [(f"{i:03}.png", _image(i)) for i in everyone]
    _write_tar(root / "apart" / "a.tar", images + [(f"{i:03}.cls", _cls(i)) for i in everyone])
    fields = [
        json.dumps({"id": i, "meta": {"species": "oak" if i % 2 else "elm"}}) for i in everyone
    ]
    trees = [m for i in everyone for m in (images[i], (f"{i:03}.json", fields[i].encode()))]
    _write_tar(root / "trees" / "a.tar", trees)
    _write_tar(root / "scans" / "a.tar", [(f"{i:03}.png", _scan(i)) for i in everyone])
    others = [("040.svg", b"<svg xmlns='x'/>"), ("041.dcm", bytes(128) + b"DICM" + bytes(99))]
    _write_tar(root / "phone" / "a.tar", images + others)
    _write_tar(root / "download" / "00000.tar", images)
    (root / "download" / "00000_stats.json").write_text("{}")
    whole = make_tar([(f"b{name}", data) for name, data in images])
    (root / "download" / "00001.tar").write_bytes(whole.rstrip(b"\0")[:-700])
    (root / "download" / "00002.tar").write_bytes(b"")


def _write_folders(root: Path) -> None:
    for i in range(_NUM):
        kind = "cat" if i % 2 else "dog"
        _write(root / "photos" / kind / f"{i:03}.png", _image(i))
        _write(root / "photos" / kind / f"{i:03}.txt", f"a {kind}".encode())
        bird = ("crow", "gull", "wren")[i % 3]
        _write(root / "birds" / "train" / bird / f"{i:03}.png", _image(i))
        if bird != "crow":
            _write(root / "birds" / "test" / bird / f"{i:03}.png", _image(i + 100))
    _write(root / "photos" / ".DS_Store", b"x")


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    _write(path, make_tar(members))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _image(seed: int) -> bytes:
    return noise(32, 32, seed=seed)


def _cls(number: int) -> bytes:
    return b"%d" % (number % 4)


def _scan(seed: int) -> bytes:
    """Encode 12 bits of noise in a PNG of 16, as sensors and scanners do."""
    levels = np.random.default_rng(seed).integers(0, 1 << 12, (32, 32), np.uint16)
    return bytes(cv2.imencode(".png", levels)[1])
