"""The losses: values by hand, gradients by differences, plateaus."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from streamssl.modules.losses import info_nce, swav_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_swav_loss_is_the_double_sum_of_the_paper() -> None:
    """Every ordered pair of an assigned and another crop counts once, samples are averaged."""
    num_crops, num_samples, num_prototypes = 4, 3, 5
    scores = random(num_crops * num_samples, num_prototypes)
    codes = {crop: random(num_samples, num_prototypes, seed=crop).softmax(1) for crop in (0, 2)}
    total = 0.0
    for crop, q in codes.items():
        for other in set(range(num_crops)) - {crop}:
            p = scores[other * num_samples : (other + 1) * num_samples] / 0.1
            total += float(-(q * p.log_softmax(1)).sum() / num_samples)
    expected = total / (len(codes) * (num_crops - 1))
    assert math.isclose(float(swav_loss(scores, codes, 0.1)), expected, rel_tol=1e-12)


def test_swav_loss_has_the_gradient_of_its_values() -> None:
    """Checked against finite differences in float64."""
    scores = random(6, 4).requires_grad_()
    codes = {crop: random(2, 4, seed=crop + 1).softmax(1) for crop in (0, 1)}
    assert torch.autograd.gradcheck(lambda s: swav_loss(s, codes, 0.5), (scores,))


def test_swav_loss_of_a_collapsed_encoder_is_ln_k() -> None:
    """The plateau that alarms are set on."""
    codes = {0: torch.full((3, 7), 1 / 7)}
    loss = swav_loss(torch.zeros(6, 7), codes, 0.1)
    assert math.isclose(float(loss), math.log(7), rel_tol=1e-6)


def test_swav_loss_is_computed_in_float32_at_least() -> None:
    """Half precision scores must not make a half precision loss."""
    codes = {0: torch.full((3, 7), 1 / 7)}
    assert swav_loss(torch.zeros(6, 7, dtype=torch.bfloat16), codes, 0.1).dtype == torch.float32


def test_info_nce_is_minus_log_of_the_share_of_the_key() -> None:
    """Equation 1 of MoCo, written out."""
    q, k, queue = (F.normalize(random(n, 6, seed=n), dim=1) for n in (3, 3, 8))
    loss, logits = info_nce(q, k, queue, 0.2)
    rows = []
    for query, key in zip(q, k, strict=True):
        positive = math.exp(float(query @ key) / 0.2)
        rows.append(-math.log(positive / (positive + (queue @ query / 0.2).exp().sum())))
    assert logits.shape == (3, 9)
    assert math.isclose(float(loss), sum(rows) / 3, rel_tol=1e-12)


def test_info_nce_has_the_gradient_of_its_values() -> None:
    """Only queries carry gradient."""
    q, k, queue = random(2, 4).requires_grad_(), random(2, 4, seed=1), random(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: info_nce(x, k, queue, 0.5)[0], (q,))
    k.requires_grad_()
    info_nce(q, k, queue, 0.5)[0].backward()
    assert k.grad is None


def test_info_nce_without_any_difference_is_ln_of_the_choices() -> None:
    """The plateau of MoCo: ln(1 + K)."""
    one = torch.ones(4, 1)
    loss, _ = info_nce(one, one, torch.ones(9, 1), 0.07)
    assert math.isclose(float(loss), math.log(10), rel_tol=1e-6)
