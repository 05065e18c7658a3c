"""Tensors: row order, memory format and normalisation of model inputs."""

import numpy as np
import pytest
import torch

from shards.crops.batch_arrays import batch_arrays
from shards.crops.recipe import IMAGENET_MEAN, IMAGENET_STD
from shards.dataloader.tensors import to_tensors

NUM_SAMPLES, NUM_VIEWS, SIZE = 3, 2, 8


@pytest.fixture
def crops():
    rng = np.random.default_rng(0)
    shape = (NUM_SAMPLES, NUM_VIEWS, SIZE, SIZE, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), np.zeros(
        (NUM_SAMPLES, 1, 4, 4, 3), np.uint8
    )


def test_rows_are_view_major_and_normalised(crops):
    """A loss would pair the crops of different samples."""
    large, small = to_tensors(crops, "cpu")
    assert large.shape == (NUM_VIEWS * NUM_SAMPLES, 3, SIZE, SIZE)
    assert small.shape == (NUM_SAMPLES, 3, 4, 4)
    for view in range(NUM_VIEWS):
        for sample in range(NUM_SAMPLES):
            expected = (crops[0][sample, view] / 255 - IMAGENET_MEAN) / IMAGENET_STD
            found = large[view * NUM_SAMPLES + sample].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_arrays_of_a_batch_give_the_same_tensors_as_any(crops):
    """Their memory is in another order, which must not reach the network."""
    arrays = batch_arrays(NUM_SAMPLES, [group.shape[1:] for group in crops])
    for array, group in zip(arrays, crops, strict=True):
        array[:] = group
    for ours, theirs in zip(to_tensors(arrays, "cpu"), to_tensors(crops, "cpu"), strict=True):
        assert torch.equal(ours, theirs)


def test_tensors_are_channels_last(crops):
    """Convolutions would copy every batch."""
    for tensor in to_tensors(crops, "cpu"):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_is_rounded_once(crops):
    """Pixels would lose two bits before normalisation."""
    exact, rounded = to_tensors(crops, "cpu")[0], to_tensors(crops, "cpu", torch.bfloat16)[0]
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exact.to(torch.bfloat16), rounded)


def test_read_only_crops_are_accepted(crops):
    """Arrays from the object store are read-only, and torch would warn."""
    crops[0].flags.writeable = False
    assert torch.equal(to_tensors(crops, "cpu")[0], to_tensors((crops[0].copy(),), "cpu")[0])


class Offered:
    """An array of a library that offers DLPack and nothing else."""

    def __init__(self, array):
        self._array = torch.from_numpy(array)

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_crops_of_other_libraries_are_tensors_without_a_copy_by_the_host(crops):
    """Crops on a GPU would be refused, or travel to the host and back."""
    by_view = [torch.from_numpy(group.swapaxes(0, 1).copy()).transpose(0, 1) for group in crops]
    for given in ([Offered(group) for group in crops], by_view):
        for found, expected in zip(to_tensors(given, "cpu"), to_tensors(crops, "cpu"), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.gpu
def test_crops_on_the_gpu_stay_there(crops):
    """They would be copied to the host and back."""
    there = [torch.from_numpy(group).cuda() for group in crops]
    for found, expected in zip(to_tensors(there, "cuda"), to_tensors(crops, "cpu"), strict=True):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_tensors(crops):
    """Normalisation would differ by device."""
    for here, there in zip(to_tensors(crops, "cpu"), to_tensors(crops, "cuda"), strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=0)


def test_the_deviation_of_red_is_that_of_published_weights():
    """SwAV's code has 0.228, a typing error that spread."""
    assert IMAGENET_STD == (0.229, 0.224, 0.225)
