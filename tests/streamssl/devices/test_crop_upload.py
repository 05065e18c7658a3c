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
