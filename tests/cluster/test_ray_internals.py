"""Contract with the private APIs of Ray: an upgrade that breaks one is named here."""

import inspect
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from cluster import ray_internals
from cluster.ray_internals import (
    bootstrap_address,
    draining_nodes,
    local_addresses_allowed,
    may_listen_widely,
    read_cluster_status,
    without_unused_servers,
    worker_output_to,
)


def test_an_address_is_resolved_as_ray_does() -> None:
    """The check that something listens would look at another port."""
    with local_addresses_allowed(True):
        assert bootstrap_address("127.0.0.1:6379") == "127.0.0.1:6379"


def test_settings_of_ray_are_restored() -> None:
    """A second session of the process would listen, or be silent, like the first."""
    worker = ray_internals.ray_worker
    before = may_listen_widely(), worker.print_to_stdstream
    assert list(inspect.signature(worker.print_to_stdstream).parameters) == [
        "data",
        "ignore_prefix",
    ]
    with local_addresses_allowed(True), worker_output_to(print):
        assert not may_listen_widely() and worker.print_to_stdstream is print
    assert (may_listen_widely(), worker.print_to_stdstream) == before


def test_servers_are_left_out_of_one_start_only() -> None:
    """A renamed method would start the server again, and a lasting change would end autoscaling."""
    node = ray_internals.RayNode
    before = [getattr(node, name) for name in ray_internals.UNUSED_SERVERS]
    assert {"include_dashboard", "raise_on_failure"} < set(inspect.signature(before[0]).parameters)
    with without_unused_servers():
        assert [getattr(node, name) for name in ray_internals.UNUSED_SERVERS] != before
        assert node.start_api_server(object(), include_dashboard=False) is None
    assert [getattr(node, name) for name in ray_internals.UNUSED_SERVERS] == before


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_no_server_runs_that_a_run_does_not_use() -> None:
    """The start of each run would wait three seconds for it, and it would hold 100 MB."""
    names = set()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            names |= {Path(word).name for word in one.cmdline()}
    assert "raylet" in names
    assert not {"dashboard.py", "monitor.py", "log_monitor.py"} & names


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_the_head_answers_about_nodes_and_notices() -> None:
    """The node watch would see no node, and avoid or drain none."""
    address = ray.get_runtime_context().gcs_address
    status = read_cluster_status(address, 5)
    [node] = [*status.active_nodes, *status.idle_nodes]
    assert ray_internals.HEAD_RESOURCE in node.total_resources()
    assert {"node_id", "ip_address", "ray_node_type_name", "labels"} <= set(vars(node))
    assert draining_nodes() == {}
    assert (status.pending_launches, status.failed_launches, status.pending_nodes) == ([], [], [])
