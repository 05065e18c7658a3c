"""Settings known to make a method collapse are noticed; good settings give no warning."""

import pytest

from tests.drills.collapsing import CASES, NOTICED_BY, NUM_STEPS, train
from tests.tinyrun import own_methods

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_a_collapse_is_noticed(name: str) -> None:
    """Days of a large run would be lost."""
    looks = train(CASES[name], broken=True)
    first = next((step for step, _, crossed in looks if crossed), None)
    assert first is not None and first <= NOTICED_BY, looks[-1]


@pytest.mark.parametrize("name", CASES)
def test_a_healthy_run_has_no_warning(name: str) -> None:
    """Warnings without a cause would be ignored later."""
    looks = train(CASES[name], broken=False)
    assert len(looks) == NUM_STEPS // 10
    assert [(step, crossed) for step, _, crossed in looks if crossed] == []


def test_every_method_has_a_collapse_case() -> None:
    """A new method must come with settings under which it fails."""
    assert CASES.keys() == own_methods()
