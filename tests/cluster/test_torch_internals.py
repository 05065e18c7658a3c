"""The contract with private names of torch: an upgrade that removes one fails here by its name."""

from operator import attrgetter

import pytest
import torch

from cluster.torch_internals import PRIVATE_NAMES


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_torch_still_has_its_private_names(name: str) -> None:
    """A trainer would fail in the middle of a run, on GPUs only."""
    try:
        attrgetter(name)(torch)
    except AttributeError:
        pytest.fail(
            f"torch {torch.__version__} has no torch.{name}; adapt cluster/torch_internals.py, or "
            "lower the upper bound of torch in pyproject.toml"
        )


def test_torch_is_a_version_that_was_checked() -> None:
    """Signatures of private functions change without notice."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    assert (2, 11) <= (major, minor) <= (2, 15), "check cluster/torch_internals.py, then raise this"
