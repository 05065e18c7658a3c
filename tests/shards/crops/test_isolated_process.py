"""IsolatedProcess: what an image does to its process costs that image, and nobody else."""

import os
import time

import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.isolated_process import IsolatedProcess
from shards.crops.sample_cropper import SampleCropper, image_digest
from shards.errors import DecoderLost
from shards.records import Chunk, Sample, Turn
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
    with IsolatedProcess(JOB, seconds) as isolation:
        return isolation.crop(samples, 5)


def assert_only(crashed_images, samples, outcome):
    """`crashed_images` are rejected and named, and all others have the crops of an ordinary engine."""
    others = [sample for sample in samples if sample not in crashed_images]
    expected = SampleCropper(JOB).crop(others, 5)
    for group, other in zip(outcome.crops, expected.crops, strict=True):
        assert np.array_equal(group, other)
    assert [(r.offset, r.reason) for r in outcome.rejects] == [
        (sample.offset, "kills_decoder") for sample in crashed_images
    ]
    assert set(outcome.crashed_images) == {image_digest(sample) for sample in crashed_images}


def test_a_crash_and_a_hang_cost_their_images_alone():
    """One file of a billion must not end a run, nor take its neighbours along."""
    samples = [sample(i, side) for i, side in enumerate([PLAIN, SEGFAULT, PLAIN, HANG, PLAIN])]
    samples.append(sample(5, SEGFAULT, seed=1))  # the same bytes under another name
    outcome = crop(samples, seconds=2)
    crashed_images = [samples[1], samples[3], samples[5]]
    assert_only(crashed_images, samples, outcome)
    details = [reject.detail for reject in outcome.rejects]
    assert details == ["died of SIGSEGV", "took more than 2 s", "died of SIGSEGV"]
    assert len(outcome.crashed_images) == 2


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
def test_whatever_an_image_does_costs_it_alone(side, seconds, death):
    """Each is a way in which decoders end."""
    samples = [sample(0), sample(1, side), sample(2)]
    outcome = crop(samples, seconds)
    assert_only(samples[1:2], samples, outcome)
    assert outcome.rejects[0].detail == death


def test_a_bug_of_ours_is_raised_and_accuses_no_image():
    """An exception is no death: the image would be in quarantine for ever."""
    with pytest.raises(ValueError, match="a bug of ours"):
        crop([sample(0), sample(1, FAIL)])


def test_a_chunk_in_isolation_is_the_chunk_without_its_killers(tmp_path):
    """The stream must not see how a chunk was cropped; with the quarantine known, nothing dies."""
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
    again = cropper.crop(shard, known)  # in this very process
    assert known == turn and again.crashed_images == ()
    assert np.array_equal(again.offsets, isolated.offsets)
    assert np.array_equal(again.kept, isolated.kept)
    assert np.array_equal(again.crops[0], isolated.crops[0])
    assert [(r.offset, r.reason) for r in again.rejects] == [
        (r.offset, r.reason) for r in isolated.rejects
    ]


def build_broken():
    os._exit(7)


@pytest.mark.slow
def test_a_child_that_cannot_start_blames_no_image():
    """A machine without a working decoder would put everything in quarantine."""
    job = killer_job(build_engine=build_broken)
    with (
        pytest.raises(DecoderLost, match=r"could not start: it left with status 7; .*plain"),
        IsolatedProcess(job) as isolation,
    ):
        isolation.crop([sample(0)], 0)


def test_nothing_is_left_of_an_isolation():
    """A reader that isolates for weeks would fill the machine."""
    with IsolatedProcess(JOB) as isolation:
        isolation.crop([sample(0)], 0)
        child = isolation._child._process.pid
        assert os.path.exists(f"/proc/{child}")
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")
