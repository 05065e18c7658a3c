"""A minute of everything; `make soak MINUTES=5` does it for longer."""

from pathlib import Path

import pytest

from tests.drills.soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_run_outlives_a_minute_of_everything(tmp_path: Path) -> None:
    """Faults that come together break what outlives each of them alone."""
    print(soak(1.0, 0, tmp_path))
