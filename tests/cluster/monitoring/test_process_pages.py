"""Pages of one process answer while its threads hang, and exist only if ports are given."""

import threading
from dataclasses import replace

import pytest

from cluster.monitoring.process_pages import ProcessPages, parse_ports
from shards.errors import ConfigError
from tests.cluster.monitoring.counted import fetch, scrape, some_ports


def hang_here(released: threading.Event, hangs: threading.Event) -> None:
    hangs.set()
    assert released.wait(20)


def test_stacks_are_served_while_the_main_thread_hangs():
    """A user needs them exactly then."""
    released, hangs, found = threading.Event(), threading.Event(), []

    def request(address: str) -> None:
        assert hangs.wait(20)
        found.append(fetch(f"http://{address}/stacks").decode())
        found.append(fetch(f"http://{address}/healthz").decode())
        released.set()

    with ProcessPages("reader-1.4", some_ports(1), dict) as pages:
        threading.Thread(target=request, args=(pages.address,), name="client", daemon=True).start()
        hang_here(released, hangs)
    stacks, health = found
    assert stacks.startswith("reader-1.4, process ") and health == "ok\n"
    threads = dict(part.split(":\n", 1) for part in stacks.split("\n\nthread ")[1:])
    assert "in hang_here" in threads["MainThread"] and "in fetch" in threads["client"]
    assert "in hang_here" not in threads["client"]


def test_a_process_serves_its_counts_under_a_prefix():
    """A rule that sums over runs would count them twice."""
    counts = {("samples", "read"): 7.0, ("train_step",): 3.0, ("bucket_bytes", "b"): 5.0}
    with ProcessPages("reader-1.4", some_ports(1), lambda: counts) as pages:
        counts["samples", "read"] = 9.0
        found = scrape(f"http://{pages.address}/metrics")
    ours = {key: value for key, value in found.items() if key[0].startswith("streamssl_")}
    assert ours == {
        ("streamssl_process_samples_total", "read"): 9,
        ("streamssl_process_train_step",): 3,
        ("streamssl_process_bucket_bytes_total", "b"): 5,
    }
    assert found["process_resident_memory_bytes",] > 1e6 and found["process_open_fds",] > 3
    assert any(key[0] == "python_info" for key in found)
    assert ("python_gc_collections_total", "0") in found


def test_processes_without_a_free_port_run_without_pages(caplog):
    """A debugging option must not end a run."""
    ports = some_ports(2)
    with (
        ProcessPages("a", ports, dict) as one,
        ProcessPages("b", ports, dict) as two,
        ProcessPages("c", ports, dict) as three,
    ):
        assert one.address == f"127.0.0.1:{ports.first}"
        assert two.address == f"127.0.0.1:{ports.last}" and three.address == ""
        assert fetch(f"http://{two.address}/stacks").startswith(b"b,")
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"c serves no pages: none of the ports {ports} is free on 127.0.0.1")
    with ProcessPages("d", ports, dict) as again:
        assert again.address == one.address


def test_pages_listen_on_loopback_unless_ports_are_on_nodes():
    """Other machines could read the stacks of a run."""
    before = threading.active_count()
    with ProcessPages("a", None, dict) as none:
        assert none.address == "" and threading.active_count() == before
    ports = some_ports(1)
    with ProcessPages("a", ports, dict, "127.0.0.9") as here:
        assert here.address.startswith("127.0.0.1:")
    with ProcessPages("a", replace(ports, on_nodes=True), dict, "127.0.0.9") as there:
        assert there.address == f"127.0.0.9:{ports.first}"
        fetch(f"http://{there.address}/healthz")


@pytest.mark.parametrize("text", ["9500", "9599-9500", "80-90", "9500-70000", "-", "a-b", "1-2-3"])
def test_invalid_ports_are_refused(text):
    """A typing error would be found when the run hangs."""
    with pytest.raises(ConfigError, match=r"two ports from 1024 .* --debug-ports 9500-9599"):
        parse_ports(text)
