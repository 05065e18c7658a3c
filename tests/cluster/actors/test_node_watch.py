"""Node watch on one machine; for several machines see `tests/drills/test_nodes.py`."""

import pytest

from cluster.actors.node_watch import Node, Nodes, NodeWatch, read_nodes
from cluster.protocol.node_pools import Pool, parse_pool
from tests.ray_clusters import wait_until


def node(name: str, pool: str, **more: object) -> Node:
    values = {"address": "10.0.0.1", "kind": pool, "total": {"CPU": 2.0}, "free": {}, **more}
    return Node(id=name, labels={"pool": pool}, **values)  # type: ignore[arg-type]


def test_nodes_are_found_by_pool_and_id() -> None:
    """A head without CPUs would get actors."""
    head = node("h", "", is_head=True, total={})
    seen = Nodes(seen=0.0, alive=(head, node("a", "readers"), node("b", "x", leaves_at=7.0)))
    assert [one.id for one in seen.of(parse_pool("pool=readers"))] == ["a"]
    assert [one.id for one in seen.of(Pool())] == ["a", "b"]
    laptop = Nodes(seen=0.0, alive=(node("h", "", is_head=True),))
    assert [one.id for one in laptop.of(Pool())] == ["h"]
    assert seen.draining == {"b": 7.0} and seen.alive[2].drains and not seen.alive[1].drains
    assert seen.find("b") is seen.alive[2] and seen.find("c") is None


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_local_ray_is_one_node_the_head() -> None:
    """A run on a laptop would find no node for its actors."""
    [alone] = read_nodes().alive
    assert alone.is_head and alone.total["CPU"] == 3 and not alone.drains
    assert read_nodes().of(Pool()) == (alone,)
    with NodeWatch(poll_seconds=0.1) as watch:
        seen = wait_until(lambda: watch.latest, "an answer")
    assert [one.id for one in seen.alive] == [alone.id]
    assert seen.pending == seen.failed == ()
