"""SupCon: images with the same label find each other."""

from pathlib import Path

import torch
from torch.nn import functional as F

from shards.crops import recipe as crops
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


def test_loss_is_that_of_the_paper() -> None:
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


def test_gradients_of_the_loss() -> None:
    """Compared with differences in float64."""
    z = unit(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, [0, 1, 0]), z)


def test_gradients_in_float32_are_exact_for_features_of_any_norm() -> None:
    """Logits of hundreds, rounded to float32, made gradients wrong by more than 1e-6."""
    generator = torch.Generator().manual_seed(0)
    for scale, temperature in ((1.0, 0.07), (2.0, 0.07), (3.0, 0.1)):
        features = scale * torch.randn(24, 8, generator=generator)
        gradients = []
        for x in (features.clone(), features.double()):
            x.requires_grad_()
            loss_of(x, [0, 1, 0, 2, 1, 3, 3, 4, 5, 6, 7, 0], temperature).backward()
            gradients.append(x.grad.double())
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-7)


def test_without_labels_it_is_simclr() -> None:
    """Two crops must have the loss of NT-Xent, which counts both directions."""
    z = unit(10)
    torch.testing.assert_close(2 * loss_of(z, [-1] * 5), nt_xent(z, 0.5)[0])
    torch.testing.assert_close(2 * loss_of(z, [4, 3, 2, 1, 0]), nt_xent(z, 0.5)[0])


def test_samples_without_a_label_match_only_themselves() -> None:
    """Two of them must not count as one class."""
    found = same_label(torch.tensor([-1, 5, -1, 5]), None)
    assert found.tolist() == [
        [True, False, False, False],
        [False, True, False, True],
        [False, False, True, False],
        [False, True, False, True],
    ]


def test_an_anchor_without_a_positive_adds_zero() -> None:
    """One crop a sample and distinct labels must not give NaN."""
    z = unit(4).requires_grad_()
    loss = loss_of(z, [0, 1, 2, 3])
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and z.grad.isfinite().all()


def test_labels_change_the_loss_and_are_read() -> None:
    """The readings are the share of labelled samples and the positives of an anchor."""
    method = built(SupConConfig(dim=4), TinyBackbone(), num_views=(2,))
    crops = [images(8, 8, 0)]
    nobody = method.loss(crops, step=0)
    ids = torch.zeros(4, 2, dtype=torch.int64)
    labels = torch.tensor([7, 7, -1, 9])
    some = method.loss(crops, step=0, samples=SampleInfo(ids, ids[:, 0], labels))
    assert (float(nobody.readings["labelled"]), float(nobody.readings["positives"])) == (0, 1)
    assert (float(some.readings["labelled"]), float(some.readings["positives"])) == (0.75, 2)
    assert not torch.equal(nobody.loss, some.loss)


def test_a_run_learns_from_the_labels_of_its_shards(shards_folder: Path, tmp_path: Path) -> None:
    """Labels must get from a tar through readers and trainer to the loss."""
    config = tiny_swav(
        method=SupConConfig(dim=8), crops=crops.cifar(), label="cls", num_steps=2, save_every=2
    )
    train_here(config, shards_folder, tmp_path / "run")
    readings = [fields["readings"]["labelled"] for fields in read_log(tmp_path / "run")]
    assert readings == [1.0, 1.0]
