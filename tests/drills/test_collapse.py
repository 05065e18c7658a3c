"""Settings known to make a method collapse are noticed; a method as it should be is left alone."""

import pytest

from tests.drills.collapsing import CASES, NOTICED_BY, NUM_STEPS, train
from tests.tinyrun import own_methods

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_a_collapse_is_noticed(name: str) -> None:
    """Days of a large run would be spent on nothing."""
    looks = train(CASES[name], broken=True)
    first = next((step for step, _, crossed in looks if crossed), None)
    assert first is not None and first <= NOTICED_BY, looks[-1]


@pytest.mark.parametrize("name", CASES)
def test_a_healthy_run_is_left_alone(name: str) -> None:
    """Whoever is warned of nothing hears no warning; and a run that learns must look well."""
    looks = train(CASES[name], broken=False)
    assert len(looks) == NUM_STEPS // 10
    assert [(step, crossed) for step, _, crossed in looks if crossed] == []


def test_every_method_without_labels_has_its_collapse() -> None:
    """A new method comes with the setting under which it fails."""
    assert CASES.keys() == own_methods()
