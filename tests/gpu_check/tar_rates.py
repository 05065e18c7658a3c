"""SwAV from tars of JPEGs to weights, in one process: images a second, and the wait for images."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cluster.trainers.trainer_crops import CroppedBatches, TrainerCropsConfig
from shards.crops.dali import DaliEngine, Pipeline
from shards.crops.engine import Engine
from shards.crops.native import NativeEngine
from shards.crops.sample_cropper import CropJob
from shards.dataloader.torch_finisher import TorchFinisher
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import pack
from shards.records import CropBatch
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.thread_readers import ThreadReaders
from streamssl.config.run_config import RunConfig
from streamssl.training.learner import PretrainLearner
from tests.gpu_check.training import build_learner, run_steps, swav_config
from tests.gpu_check.workload import SIDE, TINY_SIDE, gigabytes, synchronize

_DALI_BATCH, _DALI_THREADS = 32, 4  # as a run has them


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return the figures of each engine: crops by readers, and by DALI beside the trainer."""
    on_gpu = device == "cuda"
    config = swav_config(device)
    with tempfile.TemporaryDirectory() as folder:
        shards = data or _made(Path(folder) / "made", device)
        manifest = open_manifest(shards, RangeReader())
        learner = build_learner(config, device)
        found: dict[str, object] = {}
        engines = ["native", *([] if Pipeline is None else ["dali"])]
        for engine in engines:
            found[engine] = _rate(learner, config, manifest, engine, 12.0 if on_gpu else 0.5)
    if Pipeline is None:
        found["dali"] = "DALI is not installed here"
    return {**found, "gigabytes": gigabytes(device), "readers": _num_readers()}


def _made(out: Path, device: str) -> str:
    """Make shards of JPEGs by formula; return their folder."""
    num_images, side = (1024, SIDE) if device == "cuda" else (24, TINY_SIDE)
    pack(entries_from_synthetic(num_images, seed=0, size=side), out)
    return str(out)


def _rate(
    learner: PretrainLearner, config: RunConfig, manifest: Manifest, engine: str, seconds: float
) -> dict[str, float]:
    """Train for some seconds after a first step; return images a second, and the share waited."""
    device = learner.device.type
    with ExitStack() as stack:
        waits = _Waits(_batches(stack, config, manifest, engine, device))
        run_steps(learner, waits, 1)
        synchronize(device)
        waits.seconds = 0.0
        began, num_images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            num_images += run_steps(learner, waits, 1)
        synchronize(device)
        taken = time.perf_counter() - began
    return {
        "images_per_second": round(num_images / taken, 1),
        "input_wait_share": round(waits.seconds / taken, 3),
    }


class _Waits:
    """Batches, and the seconds that were spent in waiting for them."""

    def __init__(self, batches: Iterator[CropBatch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[CropBatch]:
        return self

    def __next__(self) -> CropBatch:
        began = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - began
        return batch


def _batches(
    stack: ExitStack, config: RunConfig, manifest: Manifest, engine: str, device: str
) -> Iterator[CropBatch]:
    def build() -> Engine:
        if engine == "native":
            return NativeEngine(config.crops)
        finisher = TorchFinisher(config.crops) if device == "cuda" else None
        return DaliEngine(config.crops, _DALI_BATCH, _DALI_THREADS, finisher)

    admission = AdmissionConfig()
    job = CropJob(recipe=config.crops, seed=0, admission=admission, build_engine=build)
    by_trainer = engine == "dali"
    reading = replace(job, only_verify=by_trainer)
    readers = stack.enter_context(ThreadReaders(manifest, reading, _num_readers()))
    order = build_order(manifest, config.stream, seed=0)
    stream = iter(BatchStream(order, config.stream, admission, readers.submit))
    if not by_trainer:
        return stream
    return stack.enter_context(CroppedBatches(stream, TrainerCropsConfig.of(job)))


def _num_readers() -> int:
    return max(2, (os.cpu_count() or 1) - 2)
