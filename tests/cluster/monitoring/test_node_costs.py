"""What nodes cost, for whoever said what an hour of one costs."""

import pytest

from cluster.monitoring.node_costs import Bill, parse_prices
from shards.errors import ConfigError


def test_nodes_cost_what_they_were_there_for() -> None:
    """By pool, the first one that holds a node; who is in none costs nothing."""
    bill = Bill(parse_prices(["pool=readers=0.06", "pool=trainers=3.6"]))
    start = bill.charge([], now=bill._charged).counts
    readers, trainers = {"pool": "readers"}, {"pool": "trainers", "zone": "a"}
    bill.charge([readers, readers, trainers, {}], now=bill._charged + 60)
    found = bill.charge([trainers], now=bill._charged + 10).counts
    assert start == {}
    assert found == {
        ("node_cost_dollars", "pool=readers"): pytest.approx(0.002),
        ("node_cost_dollars", "pool=trainers"): pytest.approx(0.07),
    }


def test_one_price_is_that_of_every_node() -> None:
    """A laptop has no pools."""
    bill = Bill(parse_prices(["36"]))
    found = bill.charge([{}], now=bill._charged + 100).counts
    assert found == {("node_cost_dollars", "any node"): pytest.approx(1.0)}


@pytest.mark.parametrize("text", ["pool=readers", "pool=readers=cheap", "-1", "inf", "nan", ""])
def test_what_is_no_price_is_refused(text: str) -> None:
    """Before a node is bought."""
    with pytest.raises(ConfigError, match=r"dollars for an hour.*--price pool=readers=0\.05"):
        parse_prices([text])
