"""Thousands of random tars, whole and damaged: every chunk is cut right, in bounded time."""

import resource

import pytest

from tests.tar_checks import check_damaged, check_wild

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_thousands_of_wild_tars_give_the_samples_of_tarfile(share):
    """Rare combinations of sizes, borders and dialects would be cut wrong."""
    num = round(5000 * share)
    exact = {nested: [check_wild(seed, nested) for seed in range(1000, 1000 + num)]
             for nested in (False, True)}  # fmt: skip
    assert all(exact[False])
    misled = exact[True].count(False)
    assert num / 50 < misled < num / 2, "misleading tars are too rare, or too frequent"


@pytest.mark.timeout(1800)
def test_thousands_of_damaged_tars_keep_the_samples_before_the_damage(share):
    """A damaged or hostile tar would raise, hang, fill the memory, or change earlier samples."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num = round(10_000 * share)
    assert sum(check_damaged(seed) for seed in range(num)) > 5 * num
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10, f"{grown >> 10} MiB more than before"
