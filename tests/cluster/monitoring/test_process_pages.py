"""The pages of one process: they answer when all else hangs, and are there only when asked for."""

import threading
import time

import pytest
import ray

from cluster.monitoring.process_pages import DebugPorts, ProcessPages, parse_ports
from shards.errors import ConfigError
from tests.cluster.monitoring.counted import fetch, scrape, some_ports


def hang_here(released: threading.Event) -> None:
    assert released.wait(20)


def test_stacks_are_told_while_the_main_thread_hangs() -> None:
    """That is when somebody asks for them."""
    released, found = threading.Event(), []

    def ask(address: str) -> None:
        time.sleep(0.1)  # until it hangs
        found.append(fetch(f"http://{address}/stacks").decode())
        found.append(fetch(f"http://{address}/healthz").decode())
        released.set()

    with ProcessPages("reader-1.4", some_ports(1), dict) as pages:
        threading.Thread(target=ask, args=(pages.address,), name="curious", daemon=True).start()
        hang_here(released)
    stacks, health = found
    assert stacks.startswith("reader-1.4, process ") and health == "ok\n"
    threads = dict(part.split(":\n", 1) for part in stacks.split("\n\nthread ")[1:])
    assert "in hang_here" in threads["MainThread"] and "in fetch" in threads["curious"]
    assert "in hang_here" not in threads["curious"]


def test_a_process_serves_what_it_counted_under_names_of_its_own() -> None:
    """Beside what it takes of its machine; the names of the run are those of all together."""
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


def test_ports_go_to_whoever_comes_first_and_the_rest_go_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run must not end because somebody wanted to look at it."""
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


def test_without_ports_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with them on the loopback address alone, unless the nodes are told to."""
    before = threading.active_count()
    with ProcessPages("a", None, dict) as none:
        assert none.address == "" and threading.active_count() == before
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.9")
    ports = some_ports(1)
    with ProcessPages("a", ports, dict) as here:
        assert here.address.startswith("127.0.0.1:")
    with ProcessPages("a", DebugPorts(ports.first, ports.last, on_nodes=True), dict) as there:
        assert there.address == f"127.0.0.9:{ports.first}"
        fetch(f"http://{there.address}/healthz")


@pytest.mark.parametrize("text", ["9500", "9599-9500", "80-90", "9500-70000", "-", "a-b", "1-2-3"])
def test_ports_that_cannot_be_meant_are_refused(text: str) -> None:
    """With what was found, what may be, and how to write it."""
    with pytest.raises(ConfigError, match=rf"'{text}'; .* 1024 to 65535, .* --debug-ports 9500"):
        parse_ports(text)


def test_ports_are_read_as_they_are_written() -> None:
    assert parse_ports("9500-9599") == DebugPorts(9500, 9599)
    assert str(DebugPorts(9500, 9500)) == "9500-9500"
