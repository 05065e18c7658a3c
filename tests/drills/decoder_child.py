"""Child process that reads hostile files with limited memory, and prints a report as one JSON line.

`fuzz` decodes mutations of good files with both engines. It writes the current mutation to a file
first, so that the parent can name the one that killed the child. `stream` reads a folder of tars
with one engine, as a run does.
"""

import json
import os
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.crops.dali import DaliEngine
from shards.crops.engine import CroppedImages, Engine, use_one_core
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.crops.sample_cropper import CropJob
from shards.images.decode import JPEG_REDUCTIONS, can_reduce, decode_stored
from shards.images.image_header import ImageError, ImageHeader
from shards.records import Chunk, ChunkCrops, Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.hostile import mutations
from tests.shards.crops.made import drawn

RECIPE = CropRecipe((ViewGroup(num_views=2, size=16, scale=(0.2, 1.0)),))
_BATCH = 32
ENGINES: dict[str, Callable[[], Engine]] = {
    "native": partial(NativeEngine, RECIPE),
    "dali": partial(DaliEngine, RECIPE, _BATCH, 1),
}
_MEMORY_BYTES = 4 << 30


def limit_memory(num_bytes: int = _MEMORY_BYTES) -> None:
    """Limit this process to `num_bytes` on top of its mapped libraries."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Fuzz:
    """Decodes mutations with both engines and collects faults."""

    def __init__(self, marks: Path) -> None:
        self._marks = os.open(marks, os.O_WRONLY | os.O_CREAT)
        self._ours, self._theirs = ENGINES["native"](), ENGINES["dali"]()
        self.verdicts: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest = (0.0, -1)

    def run(self, first: int, last: int) -> None:
        """Decode the mutations [first, last)."""
        admitted: list[tuple[int, ImageHeader]] = []
        for number, name, data in mutations(first, last):
            self._mark(f"mutation {number} of {name}: admission")
            began = time.monotonic()
            found = self._admit(number, data)
            if isinstance(found, ImageHeader):
                admitted.append((number, found))
                self.formats[found.format] += 1
            elif found is not None:
                self.verdicts[found.reason] += 1
            self._time(began, number)
            if len(admitted) == _BATCH:
                self._crop(admitted)
                admitted = []
        self._crop(admitted)

    def report(self) -> dict[str, Any]:
        return {
            "verdicts": dict(self.verdicts),
            "formats": dict(self.formats),
            "faults": self.faults,
            "slowest": self.slowest,
        }

    def _admit(self, number: int, data: bytes) -> ImageHeader | Reject | None:
        try:
            return admit(Sample(0, 512 * number, str(number), {"img": data}), AdmissionConfig())
        except Exception as error:
            self.faults.append(f"{number}: admission raised {error!r}")
            return None

    def _crop(self, admitted: list[tuple[int, ImageHeader]]) -> None:
        ours = [self._crop_alone(number, image) for number, image in admitted]
        images = [image for _, image in admitted]
        numbers = [number for number, _ in admitted]
        self._mark(f"mutations {numbers}: DALI")
        began = time.monotonic()
        try:
            theirs = self._theirs.crop(images, drawn(RECIPE, images))
        except Exception as error:
            self.faults.append(f"{numbers}: DALI raised {error!r}")
            return
        self._time(began, numbers[0] if numbers else -1, share=max(1, len(numbers)))
        reasons = {row: reason for row, reason, _ in theirs.failures}
        for row, (number, verdict) in enumerate(zip(numbers, ours, strict=True)):
            if verdict != reasons.get(row, "ok"):
                other = reasons.get(row, "ok")
                self.faults.append(f"{number}: native gives {verdict}, DALI {other}")

    def _crop_alone(self, number: int, image: ImageHeader) -> str:
        """Return the reason or "ok". Decode twice: a decoder may return uninitialised memory."""
        self._mark(f"mutation {number}: native")
        began = time.monotonic()
        parameters = drawn(RECIPE, [image])
        try:
            once, again = (self._ours.crop([image], parameters) for _ in range(2))
        except Exception as error:
            self.faults.append(f"{number}: native raised {error!r}")
            return "raised"
        self._time(began, number, share=2)
        verdict = _verdict(once)
        if verdict != _verdict(again) or not np.array_equal(once.crops[0], again.crops[0]):
            self.faults.append(f"{number}: a {image.format} decoded twice differs")
        for reduction in JPEG_REDUCTIONS if can_reduce(image) else ():
            if (other := _decoded(image, reduction)) != verdict:
                self.faults.append(f"{number}: {verdict}, but {other} at 1/{reduction}")
        self.verdicts[verdict] += 1
        return verdict

    def _time(self, began: float, number: int, share: int = 1) -> None:
        self.slowest = max(self.slowest, ((time.monotonic() - began) / share, number))

    def _mark(self, text: str) -> None:
        os.pwrite(self._marks, f"{text:2000}".encode(), 0)


def _decoded(image: ImageHeader, reduction: int) -> str:
    try:
        decode_stored(image, reduction)
    except ImageError as error:
        return error.reason
    return "ok"


def _verdict(cropped: CroppedImages) -> str:
    return "ok" if cropped.ok.all() else cropped.failures[0].reason


def fuzz(first: str, last: str, marks: str) -> dict[str, Any]:
    """Decode mutations with both engines."""
    found = Fuzz(Path(marks))
    limit_memory()
    found.run(int(first), int(last))
    return found.report()


def stream(engine: str, folder: str, num_readers: str = "2") -> dict[str, Any]:
    """Read every sample of a folder of tars once, as a run does; return rejects by key."""
    manifest = open_manifest(folder, RangeReader())
    config = StreamConfig(batch_size=4)
    admission = AdmissionConfig(max_reject_fraction=1.0)
    job = CropJob(recipe=RECIPE, seed=0, admission=admission, build_engine=ENGINES[engine])
    order = build_order(manifest, config, 0)
    chunks: dict[Chunk, ChunkCrops] = {}

    def keep(result: ChunkCrops) -> None:
        chunks.setdefault(result.chunk, result)

    with ThreadReaders(manifest, job, int(num_readers), keep) as readers:
        for batch in BatchStream(order, config, admission, readers.submit):
            if batch.epochs.max() > 0:
                break
    rejects = [reject for result in chunks.values() for reject in result.rejects]
    return {
        "verdicts": {reject.key: reject.reason for reject in rejects},
        "details": {reject.key: reject.detail for reject in rejects},
        "num_samples": sum(len(result.offsets) for result in chunks.values()),
        "num_rows": sum(len(result.crops[0]) for result in chunks.values()),
    }


def _peak_bytes() -> int:
    """Return the peak memory of this process; `getrusage` would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    command, *arguments = sys.argv[1:]
    warnings.simplefilter("ignore")  # Pillow warns about broken files
    use_one_core()
    report = {"fuzz": fuzz, "stream": stream}[command](*arguments)
    report["peak_bytes"] = _peak_bytes()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
