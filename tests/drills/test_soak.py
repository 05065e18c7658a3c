"""The gauntlet: one run suffers a minute of faults; `make soak MINUTES=30` has all of them."""

from pathlib import Path

import pytest

from tests.drills.soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.ray]


def test_a_run_survives_a_minute_of_faults(tmp_path: Path) -> None:
    """Faults that overlap can break a run that survives each of them alone."""
    print(soak(1.0, 0, tmp_path))
