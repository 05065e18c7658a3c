"""Node pools: the text of the user, the selector for Ray's scheduler, and the match of a node."""

import re
from contextlib import suppress

import pytest
import ray

from cluster.protocol.node_pools import Pool, parse_pool, parse_pools
from shards.errors import ConfigError


def test_a_pool_matches_the_nodes_that_its_labels_say() -> None:
    """An actor would be created in another pool than the one that is watched for it."""
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


def test_without_labels_a_pool_is_any_node() -> None:
    """The Ray of a laptop has no labels."""
    assert parse_pools(()) == (Pool(),) == parse_pools([""])
    assert Pool().options() == {} and Pool().holds({"pool": "readers"})
    assert str(Pool()) == "any node"


def test_the_scheduler_gets_the_nodes_to_avoid() -> None:
    """A node on which every actor dies would get the next one, too."""
    options = parse_pool("pool=readers").options({"bb", "aa"})
    assert options == {"label_selector": {"pool": "readers", "ray.io/node-id": "!in(aa, bb)"}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("readers", "pool 'readers': 'readers' is not a label"),
        ("pool=in(a", "'in(a' is not the value of a label"),
        ("-x=a", "'-x' is not the key of a label"),
        ("ray.io/node-id=a", "is reserved for nodes to avoid"),
    ],
)
def test_an_invalid_pool_is_refused_with_an_example(text: str, reason: str) -> None:
    """Ray would wait for such a node for ever."""
    with pytest.raises(ConfigError, match=re.escape(reason)) as refused:
        parse_pool(text)
    assert "such as pool=readers" in str(refused.value)


@pytest.mark.parametrize("key", ["a", "a.b/c", "-a", "a-", "a/b/c", "a_b", "x" * 64])
@pytest.mark.parametrize("value", ["", "a", "!a", "in(a,b)", "!in(a, b)", "in()", "!!a", "a b"])
def test_pools_are_valid_if_ray_accepts_them(key: str, value: str) -> None:
    """A pool that Ray refuses later would end a run that has begun."""
    accepted = parsed = False
    with suppress(ValueError):
        ray.remote(lambda: None).options(label_selector={key: value})
        accepted = True
    with suppress(ConfigError):
        parsed = parse_pool(f"{key}={value}").selector == {key: value}
    assert parsed == accepted


def test_a_pool_is_no_fallback_for_itself() -> None:
    """The second would be as empty as the first."""
    first, second = parse_pools(["pool=spot", "pool=reserved"])
    assert (str(first), str(second)) == ("pool=spot", "pool=reserved")
    with pytest.raises(ConfigError, match="pool=spot is given twice"):
        parse_pools(["pool=spot", "pool=spot"])
