"""Trainers that crop verified images get the batches of readers that crop, bit by bit."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import ray
import torch

from cluster.errors import VerifiedNotCropped
from cluster.trainers.trainer_crops import CroppedBatches, TrainerCropper, TrainerCropsConfig
from shards.crops.dali import DaliEngine
from shards.crops.engine import Engine
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, swav
from shards.crops.sample_cropper import CropJob
from shards.crops.verify_engine import as_rows
from shards.errors import StreamEnded, StreamStopped
from shards.images.image_header import read_image_header
from shards.records import CropBatch
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.cluster.data_path import WAIT, DataPath
from tests.hostile import valid
from tests.shards.crops.made import encoded, made_pixels
from tests.tars import make_tar

RECIPE = CropRecipe(swav(counts=(1, 2), sizes=(32, 16)).groups)
BATCH = 16
STREAM = StreamConfig(batch_size=BATCH, chunk_bytes=1 << 16, chunks_per_block=3)
TERMS = itertools.count(2)
LENIENT = AdmissionConfig(max_reject_fraction=1.0, formats=("jpeg", "png", "webp", "tiff", "avif"))


def build_on_gpu() -> DaliEngine:
    from shards.dataloader.torch_finisher import TorchFinisher  # needs Triton

    return DaliEngine(RECIPE, 8, 1, TorchFinisher(RECIPE))


ENGINES: dict[str, Callable[[], Engine]] = {
    "native": partial(NativeEngine, RECIPE),
    "dali-cpu": partial(DaliEngine, RECIPE, 8, 1),
    "dali-gpu": build_on_gpu,
}


def job(engine: str) -> CropJob:
    return CropJob(recipe=RECIPE, seed=0, admission=LENIENT, build_engine=ENGINES[engine])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Shards with whole and damaged images of every format; some are large."""
    folder = tmp_path_factory.mktemp("cropping") / "shards"
    folder.mkdir()
    for shard in range(3):
        files = list(valid().values())
        files += [data[: len(data) * 2 // 3] for data in files[::2]]
        files += [encoded(made_pixels(seed, 200 + seed, 260)) for seed in range(5)]
        files += [b"", b"no image"]
        members = [(f"{place:03d}.jpg", data) for place, data in enumerate(files)]
        (folder / f"{shard}.tar").write_bytes(make_tar([*members, ("note.txt", b"no image")]))
    return open_manifest(str(folder), RangeReader())


@pytest.fixture(scope="module")
def path(one_ray: None, manifest: Manifest) -> Iterator[DataPath]:
    with DataPath(manifest, replace(job("native"), only_verify=True), STREAM) as path:
        yield path


def by_readers(manifest: Manifest, engine: str, num_batches: int) -> list[CropBatch]:
    """Return the batches of one process that crops with this engine."""
    with ThreadReaders(manifest, job(engine), 1) as threads:
        order = build_order(manifest, STREAM, 0)
        stream = BatchStream(order, STREAM, LENIENT, threads.submit)
        return list(itertools.islice(stream, num_batches))


def restart(path: DataPath) -> None:
    """Plan from the first step again, in a new term, with the same readers."""
    ray.get(path.control.begin.remote(term=next(TERMS)), timeout=WAIT)


def assert_same(ours: CropBatch, theirs: CropBatch, rows: slice) -> None:
    for group, other in zip(ours.crops, theirs.crops, strict=True):
        found = torch.as_tensor(group).cpu().numpy()
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, torch.as_tensor(other[rows]).cpu().numpy())
    assert (ours.cursor, ours.digest) == (theirs.cursor, theirs.digest)
    assert ours.rejects == theirs.rejects


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    "engine", ["native", "dali-cpu", pytest.param("dali-gpu", marks=pytest.mark.gpu)]
)
def test_trainers_make_the_crops_of_readers(
    path: DataPath, manifest: Manifest, engine: str
) -> None:
    """The place of cropping must change no pixel, reject or digest.

    A rank leaves and a reader is lost meanwhile.
    """
    expected = by_readers(manifest, engine, 12)
    assert len({reject.reason for batch in expected for reject in batch.rejects}) > 4
    restart(path)
    cropping = TrainerCropsConfig.of(job(engine))
    with path.feed("t0", cropping=cropping) as first, path.feed("t1", cropping=cropping) as second:
        for rank, feed in enumerate((first, second)):
            feed.enter(rank, 2, 0)
        for step in range(4):
            assert_same(first.next(), expected[step], slice(0, BATCH // 2))
            assert_same(second.next(), expected[step], slice(BATCH // 2, BATCH))
            path.tell("committed", step)
        path.lose(next(iter(path.readers)))
        path.add_reader()
        first.enter(0, 1, 3)
        for step in range(3, 12):
            assert_same(first.next(), expected[step], slice(BATCH))
            path.tell("committed", step + 1)


@pytest.mark.slow
@pytest.mark.ray
def test_verifying_readers_count_encoded_bytes(path: DataPath, manifest: Manifest) -> None:
    """Their memory would be counted as if it held crops, or not at all."""
    restart(path)
    found = path.wait(lambda status: status["finished"]["images"] > 50)["finished"]
    assert 0 < found["bytes"] < sum(shard.num_bytes for shard in manifest.shards) * 20


def test_image_that_a_trainer_cannot_crop_ends_the_run_with_its_place() -> None:
    """Leaving it out would change the batch of this rank."""
    whole = encoded(made_pixels(0, 60, 80))
    images = [
        read_image_header(whole),
        replace(read_image_header(whole), data=whole[:700] + b"\xff\xd9"),
    ]
    ids, epochs = np.array([[3, 512], [3, 4096]]), np.array([5, 5])
    cropping = TrainerCropper(TrainerCropsConfig.of(job("native")))
    try:
        future = cropping.submit(as_rows(images), ids, epochs)
        with pytest.raises(
            VerifiedNotCropped,
            match=r"at byte 4096 of shard 3 of manifest\.parquet .*epoch 5 .*--decode readers",
        ):
            future.result()
        crops = cropping.submit(as_rows(images[:1]), ids[:1], epochs[:1]).result()
        assert [len(group) for group in crops] == [1, 1]
    finally:
        cropping.close()


@pytest.mark.parametrize("engine", ["native", "dali-cpu"])
def test_a_process_alone_crops_what_its_readers_verified(manifest: Manifest, engine: str) -> None:
    """Batches that are cropped ahead would come in another order, or twice, or with other crops."""
    expected = by_readers(manifest, engine, 5)
    with ThreadReaders(manifest, replace(job(engine), only_verify=True), 1) as threads:
        order = build_order(manifest, STREAM, 0)
        stream = iter(BatchStream(order, STREAM, LENIENT, threads.submit))
        with CroppedBatches(stream, TrainerCropsConfig.of(job(engine))) as batches:
            for batch, theirs in zip(batches, expected, strict=False):
                assert_same(batch, theirs, slice(BATCH))


def test_an_error_of_the_stream_comes_after_the_batches_before_it(manifest: Manifest) -> None:
    """Steps would be lost whose images were there; a request to stop must not wait for them."""
    expected = by_readers(manifest, "native", 3)
    with ThreadReaders(manifest, replace(job("native"), only_verify=True), 1) as threads:
        order = build_order(manifest, STREAM, 0)
        verified = list(itertools.islice(BatchStream(order, STREAM, LENIENT, threads.submit), 3))

    def broken(error: Exception) -> Iterator[CropBatch]:
        yield from verified
        raise error

    cropping = TrainerCropsConfig.of(job("native"))
    with CroppedBatches(broken(StreamEnded("no more")), cropping) as batches:
        for theirs in expected:
            assert_same(next(batches), theirs, slice(BATCH))
        with pytest.raises(StreamEnded):
            next(batches)
    with CroppedBatches(broken(StreamStopped("stop")), cropping) as batches:
        assert_same(next(batches), expected[0], slice(BATCH))
        assert_same(next(batches), expected[1], slice(BATCH))
        with pytest.raises(StreamStopped):
            next(batches)
