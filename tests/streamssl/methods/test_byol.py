"""BYOL: regression of unit vectors, a target that follows after the step."""

import pytest
import torch
from torch import nn

from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.methods.byol import regression_loss, symmetric_loss
from tests.streamssl.tiny import TinyBackbone, built, images
from tests.streamssl.tiny_methods import build, train

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def test_loss_is_two_minus_two_cosines() -> None:
    """Eq. 2 of the paper for one direction."""
    p, z = noise(5, 7), noise(5, 7)
    cosines = (p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))
    torch.testing.assert_close(regression_loss(p, z), 2 - 2 * cosines)


def test_norms_are_bounded_as_in_the_authors_code() -> None:
    """By 1e-12 on the square: a vector of 1e-8 keeps a hundredth of its length."""
    p, z = torch.zeros(1, 4), torch.zeros(1, 4)
    p[0, 0], z[0, 1] = 1e-8, 1.0
    torch.testing.assert_close(regression_loss(p, z), torch.tensor([1 + 1e-4]))


def test_gradients_of_the_loss() -> None:
    """Compared with differences in float64; targets get no gradient."""
    predictions = [noise(4, 6).requires_grad_() for _ in range(2)]
    targets = [noise(4, 6).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *p: symmetric_loss(p, targets), predictions)
    symmetric_loss(predictions, targets).backward()
    assert targets[0].grad is None and targets[1].grad is None


def test_the_target_moves_after_the_optimizer() -> None:
    """The authors average the updated weights."""
    method = build("byol")
    before = method.target.network[0].linear.weight.clone()
    train("byol", method, range(1))
    after = method.target.network[0].linear.weight
    online = method.backbone.linear.weight.detach()
    torch.testing.assert_close(after, 0.9 * before + 0.1 * online)


def test_momentum_rises_to_one_or_is_constant() -> None:
    """A cosine over the steps of the run, or one value."""
    readings = [train_readings(BYOLConfig(momentum=0.9), step)["momentum"] for step in (0, 5, 10)]
    assert readings == pytest.approx([0.9, 0.95, 1.0])
    stays = BYOLConfig(momentum=0.9, momentum_kind="constant")
    assert [train_readings(stays, step)["momentum"] for step in (0, 99)] == [0.9, 0.9]


def train_readings(config: BYOLConfig, step: int) -> dict[str, float]:
    method = built(config, TinyBackbone(), num_views=(2,), num_steps=10)
    return dict(method.loss([images(8, 8, 0)], step=step).readings)  # type: ignore[arg-type]


def test_each_view_has_batch_norm_statistics_of_its_own() -> None:
    """Shared statistics would carry information between views."""
    backbone, seen = TinyBackbone(norm=nn.BatchNorm2d(3)), []
    method = built(BYOLConfig(dim=4, hidden_dim=8), backbone, num_views=(2,), num_steps=1)
    for norm in (backbone.norm, method.target.network[0].norm):
        norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    method.loss([images(8, 8, 0)], step=0)
    assert seen == [4, 4, 4, 4]


def test_only_the_online_network_is_trained() -> None:
    """A trained target would follow the predictor."""
    method = build("byol")
    trained = {id(p) for p in method.parameters_to_optimise()}
    online = (method.backbone, method.projection, method.predictor)
    assert trained == {id(p) for part in online for p in part.parameters()}
