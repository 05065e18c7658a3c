"""Readings of features and assignments at their extremes."""

import math

import pytest
import torch
from torch.nn import functional as F

from streamssl.modules.feature_readings import effective_rank, feature_std, perplexity


def drawn(num: int = 400, dim: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(num, dim, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("num", [1, 3, 8])
def test_the_effective_rank_counts_directions(num: int) -> None:
    """Features on so many axes, equally often, have that rank."""
    x = torch.eye(8, dtype=torch.float64)[torch.arange(48) % num]
    assert float(effective_rank(x)) == pytest.approx(num)


def test_the_effective_rank_is_that_of_rankme() -> None:
    """Eq. 3 of the paper, on features with a few strong directions."""
    x = drawn() * torch.tensor([9.0, 3, 1, 1, 0.5, 0.1, 0.1, 0.01], dtype=torch.float64)
    values = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    p = values / values.sum()
    assert float(effective_rank(x)) == pytest.approx(float((-(p * p.log()).sum()).exp()), abs=1e-6)


def test_feature_std_is_one_for_isotropic_and_zero_for_equal_features() -> None:
    """For any number of dimensions."""
    assert float(feature_std(drawn(dim=8))) == pytest.approx(1, abs=0.05)
    assert float(feature_std(drawn(dim=64))) == pytest.approx(1, abs=0.05)
    assert float(feature_std(drawn()[:1].expand(20, -1))) == pytest.approx(0, abs=1e-12)


def test_perplexity_counts_equal_shares() -> None:
    """For any sum of the masses; NaN without any."""
    assert float(perplexity(torch.tensor([5.0, 5.0, 0.0, 5.0]))) == pytest.approx(3)
    assert float(perplexity(torch.tensor([0.0, 7.0]))) == pytest.approx(1)
    assert math.isnan(float(perplexity(torch.zeros(3))))
