"""Sinkhorn: equal shares, exact rows, no overflow."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamssl.modules.sinkhorn import sinkhorn


def reference(
    scores: NDArray[np.float64], epsilon: float, num_iterations: int
) -> NDArray[np.float64]:
    """Appendix A.1 of the SwAV paper, constants and all."""
    q = np.exp(scores / epsilon).T
    num_prototypes, num_samples = q.shape
    q /= q.sum()
    for _ in range(num_iterations):
        q /= q.sum(axis=1, keepdims=True) * num_prototypes
        q /= q.sum(axis=0, keepdims=True) * num_samples
    return (q * num_samples).T


def random_scores(num_samples: int, num_prototypes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_samples, num_prototypes, generator=generator, dtype=torch.float64)
    return 2.0 * uniform - 1.0


@pytest.mark.parametrize("shape", [(16, 5), (3, 40), (1, 2)])
@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.05, 3), (0.03, 10), (0.5, 1)])
def test_assignments_are_those_of_the_paper(
    shape: tuple[int, int], epsilon: float, num_iterations: int
) -> None:
    """In float64 the simplified form must equal the published one to rounding."""
    scores = random_scores(*shape)
    codes = sinkhorn(scores, epsilon=epsilon, num_iterations=num_iterations)
    assert codes.dtype == torch.float64
    np.testing.assert_allclose(
        codes.numpy(), reference(scores.numpy(), epsilon, num_iterations), rtol=1e-10, atol=1e-15
    )


def test_assignments_sum_to_one_for_any_scores() -> None:
    """Scores beyond the range of exp must give finite assignments."""
    for scale in (1e-3, 1.0, 1e2, 1e4):
        codes = sinkhorn(scale * random_scores(12, 7).float(), epsilon=0.05, num_iterations=3)
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(12))


def test_a_sample_with_low_scores_gets_an_assignment() -> None:
    """One shift for all scores would turn it into 0 / 0."""
    scores = random_scores(6, 4).float()
    scores[2] -= 50.0
    codes = sinkhorn(scores, epsilon=0.05, num_iterations=3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(6))


def test_many_iterations_give_every_prototype_the_same_share() -> None:
    """Equal use of prototypes keeps SwAV from collapse."""
    codes = sinkhorn(random_scores(20, 5), epsilon=0.1, num_iterations=200)
    torch.testing.assert_close(codes.sum(dim=0), torch.full((5,), 4.0, dtype=torch.float64))


def test_identical_features_give_uniform_assignments() -> None:
    """A collapsed encoder must see no preference."""
    scores = random_scores(1, 9).float().expand(8, 9)
    codes = sinkhorn(scores, epsilon=0.05, num_iterations=3)
    torch.testing.assert_close(codes, torch.full((8, 9), 1 / 9))


def test_samples_may_come_in_any_order() -> None:
    """A queue is concatenated with a batch."""
    scores, order = random_scores(10, 6), torch.randperm(10)
    codes = sinkhorn(scores, epsilon=0.05, num_iterations=3)
    shuffled = sinkhorn(scores[order], epsilon=0.05, num_iterations=3)
    torch.testing.assert_close(shuffled, codes[order])


def test_autocast_does_not_lower_the_precision() -> None:
    """Under bf16 autocast assignments must equal those of float32 bit by bit."""
    scores = random_scores(8, 6).float()
    expected = sinkhorn(scores, epsilon=0.05, num_iterations=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores, epsilon=0.05, num_iterations=3)
        from_half = sinkhorn(scores.bfloat16(), epsilon=0.05, num_iterations=3)
    assert torch.equal(codes, expected)
    assert from_half.dtype == torch.float32


def test_assignments_carry_no_gradient() -> None:
    """Assignments are targets."""
    scores = random_scores(4, 3).requires_grad_()
    assert not sinkhorn(scores, epsilon=0.05, num_iterations=3).requires_grad
