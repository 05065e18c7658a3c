"""Crops on a GPU: those of the step, though the next batch is copied while it runs."""

import numpy as np
import pytest
import torch

from shards.dataloader.tensors import to_tensors
from streamssl.devices.crop_upload import CropUpload
from streamssl.devices.number_transfer import begin_transfer

SHAPES = ((8, 2, 64, 64, 3), (8, 3, 32, 32, 3))


def crops_of(number: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(number)
    return tuple(rng.integers(0, 256, shape, np.uint8) for shape in SHAPES)


def test_on_a_cpu_nothing_is_copied_beside_the_tensors() -> None:
    """A CPU has no other memory: the inputs are those that they always were."""
    crops = crops_of(0)
    crops[0].flags.writeable = False
    found = CropUpload(torch.device("cpu")).to_tensors(crops, torch.float32)
    for ours, theirs in zip(found, to_tensors(crops, "cpu"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_batches_that_overtake_a_long_step_do_not_overwrite_its_crops() -> None:
    """The copy of the next batch would change the images of the step that still reads them."""
    device, sums = torch.device("cuda"), []
    batches = [crops_of(number) for number in range(12)]
    expected = [
        view.double().sum().item() for crops in batches for view in to_tensors(crops, "cpu")
    ]
    upload, busy = CropUpload(device), torch.ones(4096, 4096, device=device)
    for crops in batches:
        for _ in range(20):
            busy = busy @ busy / 4096
        views = upload.to_tensors(crops, torch.float32)
        sums.append(begin_transfer([view.double().sum() for view in views]))
    found = [value.item() for one in sums for value in one.wait()]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.gpu
def test_a_batch_that_is_ahead_is_used_only_as_the_next_one() -> None:
    """A rank that gets other rows after a regroup must not train on those that it had copied."""
    device = torch.device("cuda")
    upload, [first, second, third] = CropUpload(device), [crops_of(number) for number in range(3)]
    expected = {id(crops): to_tensors(crops, "cpu") for crops in (first, second, third)}
    upload.begin(first)
    upload.begin(second)  # one is ahead already
    for crops in (first, second, third, second, first):
        found = upload.to_tensors(crops, torch.float32)
        upload.begin(third)
        for ours, theirs in zip(found, expected[id(crops)], strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=0)
