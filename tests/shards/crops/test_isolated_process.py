"""IsolatedProcess: an image that crashes, hangs or bloats its process costs only itself."""

import os
import subprocess
import sys

import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.isolated_process import IsolatedProcess
from shards.crops.sample_cropper import SampleCropper, image_digest
from shards.errors import DecoderLost
from shards.records import Chunk, Sample, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from tests.shards.killers import (
    ABORT,
    EAT,
    EXIT,
    FAIL,
    HANG,
    NULL,
    SEGFAULT,
    SLEEP,
    killer_job,
    png,
    tar_of,
)

JOB = killer_job()
PLAIN = 24


def sample(number, side=PLAIN, seed=None):
    data = png(number if seed is None else seed, side)
    return Sample(0, 1024 * number, f"{number:03d}", {"png": data})


def crop(samples, seconds=60.0):
    with IsolatedProcess(JOB, seconds) as process:
        return process.crop(samples, 5)


def assert_only(crashing, samples, cropped):
    """Check that only `crashing` are rejected, and all others have their usual crops."""
    others = [sample for sample in samples if sample not in crashing]
    expected = SampleCropper(JOB).crop(others, 5)
    for group, other in zip(cropped.crops, expected.crops, strict=True):
        assert np.array_equal(group, other)
    assert [(r.offset, r.reason) for r in cropped.rejects] == [
        (sample.offset, "kills_decoder") for sample in crashing
    ]
    assert set(cropped.crashed_images) == {
        image_digest(sample, AdmissionConfig()) for sample in crashing
    }


@pytest.mark.slow
def test_a_crash_or_a_hang_costs_only_its_image():
    """One file of a billion would end a run, or cost its neighbours."""
    samples = [sample(i, side) for i, side in enumerate([PLAIN, SEGFAULT, PLAIN, HANG, PLAIN])]
    samples.append(sample(5, SEGFAULT, seed=1))  # the same bytes under another key
    cropped = crop(samples, seconds=2)
    assert_only([samples[1], samples[3], samples[5]], samples, cropped)
    details = [reject.detail for reject in cropped.rejects]
    assert details == ["died of SIGSEGV", "took more than 2 s", "died of SIGSEGV"]
    assert len(cropped.crashed_images) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "seconds", "death"),
    [
        (NULL, 60, "died of SIGSEGV"),
        (ABORT, 60, "died of SIGABRT"),
        (EXIT, 60, "left with status 3"),
        (SLEEP, 2, "took more than 2 s"),
        (EAT, 60, "left with status 1"),
    ],
)
def test_every_kind_of_death_costs_only_its_image(side, seconds, death):
    """Decoders end in each of these ways."""
    samples = [sample(0), sample(1, side), sample(2)]
    cropped = crop(samples, seconds)
    assert_only(samples[1:2], samples, cropped)
    assert cropped.rejects[0].detail == death


def test_an_exception_of_the_code_is_raised():
    """The image would stay in quarantine for ever."""
    with pytest.raises(ValueError, match="a bug of the engine"):
        crop([sample(0), sample(1, FAIL)])


def test_an_isolated_chunk_equals_the_chunk_without_crashing_images(tmp_path):
    """The stream would depend on how a chunk was cropped."""
    sides = [PLAIN, 4, PLAIN, SEGFAULT, PLAIN]
    images = [png(number, side) for number, side in enumerate(sides)] + [b"junk"]
    (tmp_path / "0.tar").write_bytes(tar_of(images))
    (shard,) = list_shards(str(tmp_path / "0.tar"))
    turn = Turn(Chunk(0, 0, shard.num_bytes), 2)
    cropper = ChunkCropper(JOB, RangeReader())
    isolated = cropper.crop_isolated(shard, turn)
    assert isolated.kept.tolist() == [True, False, True, False, True, False]
    reasons = [reject.reason for reject in isolated.rejects]
    assert reasons == ["too_small", "kills_decoder", "not_an_image"]
    assert isolated.num_bytes == 3 * JOB.recipe.num_bytes
    known = Turn(turn.chunk, 2, frozenset(isolated.crashed_images))
    again = cropper.crop(shard, known)  # in this process
    assert known == turn and again.crashed_images == ()
    assert np.array_equal(again.offsets, isolated.offsets)
    assert np.array_equal(again.kept, isolated.kept)
    assert np.array_equal(again.crops[0], isolated.crops[0])
    assert [(r.offset, r.reason) for r in again.rejects] == [
        (r.offset, r.reason) for r in isolated.rejects
    ]


FORGETS_ITS_CHILD = """
from shards.crops.isolated_process import IsolatedProcess
from tests.shards.crops.test_isolated_process import JOB, sample

if __name__ == "__main__":
    process = IsolatedProcess(JOB)
    process.crop([sample(0)], 5)
    print("leaving")
"""


@pytest.mark.slow
def test_a_process_leaves_without_ending_its_child(tmp_path):
    """The child ignores SIGTERM: a command would wait for it for ever after its last line."""
    (tmp_path / "main.py").write_text(FORGETS_ITS_CHILD)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], env=env, stdout=subprocess.PIPE, timeout=50
    )
    assert (done.returncode, done.stdout) == (0, b"leaving\n")


def build_broken():
    os._exit(7)


@pytest.mark.slow
def test_a_child_that_cannot_start_rejects_no_image():
    """A machine without a working decoder would quarantine everything."""
    job = killer_job(build_engine=build_broken)
    with (
        pytest.raises(DecoderLost, match=r"could not start: it left with status 7; .*plain"),
        IsolatedProcess(job) as process,
    ):
        process.crop([sample(0)], 0)


def test_the_child_ends_with_its_context():
    """A reader that runs for weeks would fill the machine."""
    with IsolatedProcess(JOB) as process:
        process.crop([sample(0)], 0)
        child = process._child._process.pid
        assert os.path.exists(f"/proc/{child}")
    assert not os.path.exists(f"/proc/{child}")
