"""NodeWatch on a real cluster: nodes that join, drain, vanish and fail to launch."""

import time

import pytest
import ray

from cluster.actors.node_watch import NodeWatch, read_nodes
from cluster.protocol.node_pools import Pool, parse_pool
from tests.ray_clusters import connected, ray_cluster, wait_until
from tests.scaling_cluster import scaling_cluster

pytestmark = [pytest.mark.nightly, pytest.mark.ray]


@ray.remote(num_cpus=1, **parse_pool("pool=spot").options())
class Busy:
    """Keeps a draining node busy: an idle node leaves at once."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_nodes_that_come_leave_and_vanish_are_seen() -> None:
    """Control must see labels, drain notices with deadlines, and lost nodes."""
    with ray_cluster(persistent=True) as cluster:
        readers, spot = cluster.add("readers"), cluster.add("spot", num_cpus=1)
        with connected(cluster.address), NodeWatch(poll_seconds=0.2) as watch:
            both = {readers.node_id, spot.node_id}
            wait_until(
                lambda: watch.latest and both <= {one.id for one in watch.latest.alive}, "both"
            )
            seen = read_nodes()
            assert [one.is_head for one in seen.alive] == [True, False, False]
            assert {one.id for one in seen.of(Pool())} == both
            [found] = seen.of(parse_pool("pool=spot"))
            assert (found.id, found.total["CPU"], found.drains) == (spot.node_id, 1.0, False)
            assert found.address and seen.pending == seen.failed == ()
            busy = Busy.remote()
            assert ray.get(busy.node.remote()) == spot.node_id
            cluster.drain(spot, 60)
            wait_until(lambda: watch.latest and watch.latest.draining, "notice")
            leaves_at = read_nodes().draining[spot.node_id]
            assert 0 < leaves_at - time.time() <= 60
            cluster.lose(readers)
            wait_until(
                lambda: watch.latest and not watch.latest.find(readers.node_id), "loss of a node"
            )
            assert watch.latest is not None
            cluster.kill_gcs()
            silent = time.monotonic()
            assert ray.get(busy.node.remote(), timeout=60) == spot.node_id, "actors work on"
            cluster.start_gcs()
            wait_until(lambda: watch.latest and watch.latest.seen > silent, "an answer again")
            assert watch.latest.draining == {spot.node_id: leaves_at}, "the head has forgotten it"


KINDS = {
    "spot": {
        "resources": {"CPU": 2, "object_store_memory": 80_000_000},
        "labels": {"pool": "spot"},
        "min_workers": 0,
        "max_workers": 2,
    }
}


def test_launches_that_fail_are_seen_with_their_reason() -> None:
    """A run that waits for nodes must learn that their launch failed."""
    with scaling_cluster(KINDS) as cluster, connected(cluster.address):
        cluster.order(refused=("spot",))
        needy = ray.remote(num_cpus=2, **parse_pool("pool=spot").options())(lambda: "here").remote()
        failed = wait_until(lambda: read_nodes().failed, "failed launch")
        assert failed[0].kind == "spot" and failed[0].count >= 1
        cluster.order(boot_seconds=2.0)
        wait_until(lambda: read_nodes().pending, "launch under way")
        assert ray.get(needy, timeout=90) == "here"
        assert [one.labels["pool"] for one in read_nodes().of(parse_pool("pool=spot"))] == ["spot"]
        wait_until(lambda: not read_nodes().of(Pool()), "idle node leaving")
