"""Nodes cost what the user's prices say."""

import pytest

from cluster.monitoring.node_costs import NodeBill, parse_prices
from shards.errors import ConfigError


def test_nodes_are_charged_by_pool_for_their_time():
    """A node outside all pools costs nothing; a node in two pools is charged once."""
    bill = NodeBill(parse_prices(["pool=readers=0.06", "pool=trainers=3.6"]))
    start = bill.charge([], now=bill._charged).counts
    readers, trainers = {"pool": "readers"}, {"pool": "trainers", "zone": "a"}
    bill.charge([readers, readers, trainers, {}], now=bill._charged + 60)
    found = bill.charge([trainers], now=bill._charged + 10).counts
    assert start == {}
    assert found == {
        ("node_cost_dollars", "pool=readers"): pytest.approx(0.002),
        ("node_cost_dollars", "pool=trainers"): pytest.approx(0.07),
    }


def test_a_price_without_a_pool_is_for_every_node():
    """A laptop has no pools."""
    bill = NodeBill(parse_prices(["36"]))
    found = bill.charge([{}], now=bill._charged + 100).counts
    assert found == {("node_cost_dollars", "any node"): pytest.approx(1.0)}


@pytest.mark.parametrize("text", ["pool=readers", "pool=readers=cheap", "-1", "inf", "nan", ""])
def test_invalid_prices_are_refused(text):
    """A typing error would be found after the nodes were paid for."""
    with pytest.raises(ConfigError, match=r"dollars for an hour.*--price pool=readers=0\.05"):
        parse_prices([text])
