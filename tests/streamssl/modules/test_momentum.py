"""The momentum copy: parameters follow, buffers do not."""

import torch
from torch import nn

from streamssl.modules.momentum import MomentumCopy


def test_parameters_are_averaged_and_the_copy_keeps_no_statistics() -> None:
    """Ranks would keep different statistics."""
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    copy = MomentumCopy(source)
    old = [parameter.clone() for parameter in copy.parameters()]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 1.0
    source[1].running_mean.fill_(5.0)
    copy.update(source, 0.9)
    for before, after, new in zip(old, copy.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(after, 0.9 * before + 0.1 * new)
    assert not list(copy.buffers())
    seen = copy(torch.randn(8, 3))
    torch.testing.assert_close(seen.mean(0), copy.network[1].bias)


def test_a_copy_shares_no_storage_and_has_no_gradient() -> None:
    """A shared tensor would be averaged with itself."""
    source = nn.Linear(3, 2)
    copy = MomentumCopy(source)
    assert copy.network.weight.data_ptr() != source.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not copy(torch.randn(1, 3, requires_grad=True)).requires_grad


def test_momentum_one_keeps_and_zero_replaces() -> None:
    """Both ends of the average."""
    source = nn.Linear(3, 2)
    copy = MomentumCopy(nn.Linear(3, 2))
    before = copy.network.weight.clone()
    copy.update(source, 1.0)
    assert torch.equal(copy.network.weight, before)
    copy.update(source, 0.0)
    assert torch.equal(copy.network.weight, source.weight)
