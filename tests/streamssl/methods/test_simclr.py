"""SimCLR: NT-Xent for two crops and for many, and distillation."""

import pytest
import torch
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.methods.distillation import distillation_loss
from streamssl.methods.simclr import nt_xent
from streamssl.modules.heads import simclr_head
from tests.streamssl.tiny import TinyBackbone, built, images


def unit(num_rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, 6, generator=generator, dtype=torch.float64), dim=1)


def plain_nt_xent(z: torch.Tensor, temperature: float, num_crops: int) -> torch.Tensor:
    """Pair by pair: -log of the pair over the pair and all crops of other images, doubled."""
    num_samples, terms = len(z) // num_crops, []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j % num_samples != i % num_samples]
        negatives = torch.stack([(z[i] @ z[j] / temperature).exp() for j in others]).sum()
        for j in range(len(z)):
            if j != i and j % num_samples == i % num_samples:
                positive = (z[i] @ z[j] / temperature).exp()
                terms.append(-(positive / (positive + negatives)).log())
    return 2 * torch.stack(terms).mean()


@pytest.mark.parametrize("num_crops", [2, 3, 6])
def test_loss_is_that_of_the_papers(num_crops: int) -> None:
    """SimCLR's for two crops, that of SwAV's comparison for more."""
    z = unit(4 * num_crops)
    loss, _ = nt_xent(z, 0.3, num_crops=num_crops)
    torch.testing.assert_close(loss, plain_nt_xent(z, 0.3, num_crops))


@pytest.mark.parametrize("num_crops", [2, 3])
def test_gradients_of_the_loss(num_crops: int) -> None:
    """Compared with differences in float64."""
    z = unit(3 * num_crops).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, 0.5, num_crops=num_crops)[0], z)


def test_a_small_temperature_does_not_overflow() -> None:
    """exp(1 / 0.001) overflows."""
    z = unit(8).float().requires_grad_()
    loss, _ = nt_xent(z, 1e-3)
    loss.backward()
    assert loss.isfinite() and z.grad is not None and z.grad.isfinite().all()


def test_distillation_is_soft_cross_entropy() -> None:
    """T^2 times the cross entropy of softened logits; no gradient to the teacher."""
    student, teacher = unit(5).requires_grad_(), unit(5, seed=1).requires_grad_()
    p, log_q = (teacher / 2).softmax(1), (student / 2).log_softmax(1)
    expected = -4 * (p * log_q).sum(1).mean()
    loss = distillation_loss(student, teacher, 2.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, 2.0), student)


def test_heads_have_two_or_three_layers_without_a_last_bias() -> None:
    """v2 is fine-tuned from the end of the first three modules."""
    for num_layers in (2, 3):
        head = simclr_head(10, 4, num_layers)
        kinds = [type(layer).__name__ for layer in head]
        assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * (num_layers - 1) + kinds[:2]
        assert head[0].out_features == 10 and head[-2].out_features == 4
        assert not head[-1].bias.requires_grad and head[1].bias.requires_grad


def test_all_crops_pass_the_head_together() -> None:
    """Its batch norm must see crops of all sizes."""
    method, seen = built(SimCLRConfig(dim=4), TinyBackbone(), num_views=(2, 3)), []
    method.head[1].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    output = method.loss([images(8, 8, 0), images(12, 4, 1)], step=0)
    assert seen == [20] and output.features is not None and len(output.features) == 4


def test_readings_of_a_perfect_match_are_one() -> None:
    """Accuracy and cosine of two equal crops."""
    method = built(SimCLRConfig(dim=4), TinyBackbone(), num_views=(2,))
    crops = images(6, 8, 0)
    readings = method.loss([torch.cat([crops, crops])], step=0).readings
    assert float(readings["contrast_accuracy"]) == 1
    assert float(readings["positive_cosine"]) == pytest.approx(1, abs=1e-5)


def test_a_batch_without_negatives_is_refused() -> None:
    """One image has no negatives."""
    with pytest.raises(ConfigError, match="a batch of 1 image"):
        nt_xent(unit(2), 0.5)
