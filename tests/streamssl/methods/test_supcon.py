"""SupCon: images with the same label find each other."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shards.crops import recipe as crops
from shards.errors import ConfigError
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.methods.base import SampleInfo
from streamssl.methods.simclr import nt_xent
from streamssl.methods.supcon import same_label, supcon_loss
from tests.streamssl.tiny import TinyBackbone, built, images
from tests.tinyrun import read_log, tiny_swav, train_here


def unit(num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(num_rows, 6, generator=generator, dtype=torch.float64), dim=1)


def loss_of(z: torch.Tensor, labels: list[int], temperature: float = 0.5) -> torch.Tensor:
    num_crops = len(z) // len(labels)
    positive = same_label(torch.tensor(labels), None).repeat(num_crops, num_crops)
    own = torch.arange(len(z))
    return supcon_loss(z, z, positive, own, temperature=temperature, base_temperature=temperature)


def test_the_loss_is_that_of_the_paper() -> None:
    """Eq. 2, anchor by anchor."""
    z, labels = unit(8), [0, 1, 0, 2]
    terms = []
    for i in range(8):
        all_others = [j for j in range(8) if j != i]
        total = torch.stack([(z[i] @ z[j] / 0.5).exp() for j in all_others]).sum()
        wanted = [j for j in all_others if labels[j % 4] == labels[i % 4]]
        terms.append(
            -torch.stack([((z[i] @ z[j] / 0.5).exp() / total).log() for j in wanted]).mean()
        )
    torch.testing.assert_close(loss_of(z, labels), torch.stack(terms).mean())


def test_gradients_of_the_loss_are_right() -> None:
    """Numerically, in float64."""
    z = unit(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, [0, 1, 0]), z)


def test_without_labels_it_is_simclr() -> None:
    """Two crops: the same loss as NT-Xent, which counts both directions."""
    z = unit(10)
    torch.testing.assert_close(2 * loss_of(z, [-1] * 5), nt_xent(z, 0.5)[0])
    torch.testing.assert_close(2 * loss_of(z, [4, 3, 2, 1, 0]), nt_xent(z, 0.5)[0])


def test_samples_without_a_label_are_like_nobody_else() -> None:
    """Two of them must not be taken for one class."""
    found = same_label(torch.tensor([-1, 5, -1, 5]), None)
    assert found.tolist() == [
        [True, False, False, False],
        [False, True, False, True],
        [False, False, True, False],
        [False, True, False, True],
    ]


def test_an_anchor_without_a_positive_adds_nothing_and_no_nan() -> None:
    """One crop a sample, no two labels alike."""
    z = unit(4).requires_grad_()
    loss = loss_of(z, [0, 1, 2, 3])
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and z.grad.isfinite().all()


def test_labels_reach_the_loss_and_are_told() -> None:
    """The share of samples with a label, and how many positives an anchor has."""
    method = built(SupConConfig(dim=4), TinyBackbone(), num_views=(2,))
    crops = [images(8, 8, 0)]
    nobody = method.loss(crops, step=0)
    ids = torch.zeros(4, 2, dtype=torch.int64)
    labels = torch.tensor([7, 7, -1, 9])
    some = method.loss(crops, step=0, samples=SampleInfo(ids, ids[:, 0], labels))
    assert (float(nobody.readings["labelled"]), float(nobody.readings["positives"])) == (0, 1)
    assert (float(some.readings["labelled"]), float(some.readings["positives"])) == (0.75, 2)
    assert not torch.equal(nobody.loss, some.loss)


def test_what_cannot_be_compared_is_refused() -> None:
    """One view has no partner."""
    with pytest.raises(ConfigError, match=r"num_views=\(1,\); SupCon compares crops"):
        built(SupConConfig(), TinyBackbone(), num_views=(1,))
    with pytest.raises(ConfigError, match=r"base_temperature=0\.0"):
        SupConConfig(base_temperature=0.0)


def test_a_run_learns_from_the_labels_of_its_shards(shards_folder: Path, tmp_path: Path) -> None:
    """From a tar's member through readers, batches and trainer to the loss."""
    config = tiny_swav(
        method=SupConConfig(dim=8), crops=crops.cifar(), label="cls", num_steps=2, save_every=2
    )
    train_here(config, shards_folder, tmp_path / "run")
    readings = [fields["readings"]["labelled"] for fields in read_log(tmp_path / "run")]
    assert readings == [1.0, 1.0]


def test_a_label_for_a_method_that_learns_from_none_is_refused() -> None:
    """It would change nothing, and nobody would be told."""
    with pytest.raises(
        ConfigError, match="label='cls' with method swav; only supcon, fine-tune and spcl"
    ):
        tiny_swav(label="cls")
