"""Pools: what a user writes, what Ray's scheduler is told, and what is believed of a node."""

import re

import pytest

from cluster.protocol.node_pools import Pool, parse_pool, parse_pools
from shards.errors import ConfigError


def test_a_pool_is_what_its_labels_say() -> None:
    """An actor would be made in another pool than the one that is watched for it."""
    pool = parse_pool("pool=readers, market=in(spot, reserved),zone=!a")
    assert pool.selector == {"pool": "readers", "market": "in(spot, reserved)", "zone": "!a"}
    assert pool.options() == {"label_selector": dict(pool.selector)}
    node = {"pool": "readers", "market": "spot", "zone": "b"}
    assert pool.holds(node)
    for key, value in (("pool", "trainers"), ("market", "on-demand"), ("zone", "a")):
        assert not pool.holds(node | {key: value})
    assert not pool.holds({"pool": "readers", "zone": "b"})
    assert pool.holds({"pool": "readers", "market": "reserved"}), "no zone is not zone a"
    assert parse_pool("x=!in(a, b)").holds({}) and not parse_pool("x=!in(a, b)").holds({"x": "b"})
    assert str(pool) == "pool=readers,market=in(spot, reserved),zone=!a"
    assert parse_pool(str(pool)) == pool


def test_no_pool_is_any_node() -> None:
    """A laptop's Ray has no labels."""
    assert parse_pools(()) == (Pool(),) == parse_pools([""])
    assert Pool().options() == {} and Pool().holds({"pool": "readers"})
    assert str(Pool()) == "any node"


def test_nodes_to_avoid_are_told_to_the_scheduler() -> None:
    """A node on which every actor dies would get the next one, too."""
    options = parse_pool("pool=readers").options({"bb", "aa"})
    assert options == {"label_selector": {"pool": "readers", "ray.io/node-id": "!in(aa, bb)"}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("readers", "pool 'readers': 'readers' is not a label"),
        ("pool=in(a", "Invalid label selector value `in(a`"),
        ("-x=a", "Invalid label key name `-x`"),
        ("ray.io/node-id=a", "is reserved for nodes to avoid"),
    ],
)
def test_what_is_no_pool_is_refused_with_an_example(text: str, reason: str) -> None:
    """Ray would wait for such a node for ever."""
    with pytest.raises(ConfigError, match=re.escape(reason)) as refused:
        parse_pool(text)
    assert "such as pool=readers" in str(refused.value)


def test_a_pool_is_no_fall_back_of_itself() -> None:
    """The second would be as empty as the first."""
    first, second = parse_pools(["pool=spot", "pool=reserved"])
    assert (str(first), str(second)) == ("pool=spot", "pool=reserved")
    with pytest.raises(ConfigError, match="pool=spot is given twice"):
        parse_pools(["pool=spot", "pool=spot"])
