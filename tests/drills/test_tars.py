"""Thousands of random tars, whole and damaged: no chunk of any of them is cut wrong, or hangs."""

import resource

import pytest

from tests.cutting import check_damaged, check_wild

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_thousands_of_wild_tars_are_cut_as_tarfile_reads_them(share):
    """The rare coincidences of sizes, borders and dialects are where a cut goes wrong."""
    num = round(5000 * share)
    exact = {nested: [check_wild(seed, nested) for seed in range(1000, 1000 + num)]
             for nested in (False, True)}  # fmt: skip
    assert all(exact[False])
    deceived = exact[True].count(False)
    assert num / 50 < deceived < num / 2, "deceiving tars are rare, or all that is tested"


@pytest.mark.timeout(1800)
def test_thousands_of_damaged_tars_cost_only_what_was_hit(share):
    """Whatever a disk or an attacker wrote: no exception, no hang, little memory, and all samples
    before it as they were."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num = round(10_000 * share)
    assert sum(check_damaged(seed) for seed in range(num)) > 5 * num
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10, f"{grown >> 10} MiB more than before"
