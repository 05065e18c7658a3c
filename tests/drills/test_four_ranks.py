"""Four gloo processes and one process with the same global batch: the same mathematics."""

import pytest
import torch

from tests.golden_checks.ranks import run_ranks
from tests.streamssl.methods.test_label_ranks import everything
from tests.streamssl.tiny_methods import train_all


@pytest.mark.slow
def test_every_method_learns_the_same_on_four_ranks() -> None:
    """Two ranks cannot tell a rank's own rows from the last ones."""
    torch.set_num_threads(1)
    expected = train_all(None)
    for found in run_ranks(train_all, 4):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_every_memory_and_mixture_is_the_same_on_four_ranks() -> None:
    """Neighbours at the ends of a rank's rows are on another rank, twice."""
    torch.set_num_threads(1)
    expected = everything(None)
    for found in run_ranks(everything, 4):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11)
