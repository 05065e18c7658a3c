"""Throughput probe: rates of readers and trainers before a run begins."""

from pathlib import Path

import pytest

from cluster.protocol.node_pools import Pool
from cluster.readers.throughput_probe import DecodeRates, measure_rates
from tests.cluster.marked import MarkedShards

POOLS = {"reader": (Pool(),), "trainer": (Pool(),)}


def test_the_slowest_part_limits_the_rate() -> None:
    """Trainers would crop although they, or their readers, are too slow."""
    rates = DecodeRates(cropping=100.0, verifying=300.0, trainer=1000.0)
    assert rates.by_readers(4) == 400.0
    assert rates.by_trainers(4, 2) == 1200.0
    assert rates.by_trainers(4, 1) == 1000.0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(120)
def test_rates_are_measured_on_the_first_images(one_ray: None, tmp_path: Path) -> None:
    """The choice would ignore the decoders and the speed of the nodes."""
    shards = MarkedShards(tmp_path / "shards", 1, {})
    shard, chunk = shards.manifest.shards[0], shards.turn("plain0").chunk
    rates = measure_rates(shards.job(), shard, chunk, POOLS, {"num_cpus": 1})
    assert min(rates.cropping, rates.verifying, rates.trainer) > 1
