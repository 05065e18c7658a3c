"""Prototypes: unit rows, freezing, and who uses them."""

import math

import torch
from torch.nn import functional as F

from streamssl.modules.prototypes import Prototypes


def test_scores_are_cosines_after_normalising() -> None:
    """Rows go back to the sphere in place, and there is no bias."""
    prototypes = Prototypes(5, 3)
    prototypes.weight.data *= 7.0
    prototypes.normalise_()
    z = F.normalize(torch.randn(4, 3), dim=1)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes(z), z @ prototypes.weight.T)
    assert [name for name, _ in prototypes.named_parameters()] == ["weight"]


def test_a_dropped_gradient_leaves_the_prototypes_alone() -> None:
    """Neither momentum nor decay may move frozen prototypes."""
    prototypes = Prototypes(5, 3)
    optimizer = torch.optim.SGD(prototypes.parameters(), 1.0, momentum=0.9, weight_decay=0.1)
    before = prototypes.weight.detach().clone()
    prototypes(torch.randn(2, 3)).sum().backward()
    prototypes.drop_gradient()
    optimizer.step()
    assert torch.equal(prototypes.weight, before)


def test_equal_use_reads_one_and_opinions_read_no_entropy() -> None:
    """The readings at their two ends."""
    prototypes = Prototypes(4, 2)
    sharp = prototypes.count_use(torch.eye(4), None)
    assert math.isclose(float(sharp["prototype_usage"]), 1.0, rel_tol=1e-6)
    assert float(sharp["codes_entropy"]) == 0.0
    flat = prototypes.count_use(torch.full((4, 4), 0.25), None)
    assert math.isclose(float(flat["codes_entropy"]), math.log(4), rel_tol=1e-6)
    one = prototypes.count_use(torch.eye(4)[[2, 2, 2]], None)
    assert math.isclose(float(one["prototype_usage"]), 0.25, rel_tol=1e-6)


def test_a_prototype_dies_after_ten_codes_each_and_comes_back_when_chosen() -> None:
    """Dead means: no first choice for 10 K codes."""
    prototypes = Prototypes(2, 2)
    favourite = torch.eye(2)[[0] * 5]
    dead = [float(prototypes.count_use(favourite, None)["prototypes_dead"]) for _ in range(5)]
    assert dead == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert float(prototypes.count_use(torch.eye(2), None)["prototypes_dead"]) == 0.0
