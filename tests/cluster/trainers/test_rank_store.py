"""Store of the ranks: for whoever has the secret, on one address; nobody else changes a thing."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from cluster.torch_internals import open_tcp_store
from cluster.trainers.rank_channel import ChannelRefused, RankChannel
from cluster.trainers.rank_store import RankStore, RankStoreServer
from cluster.trainers.rendezvous import RankInfo, _device_stores
from tests.other_user import as_nobody, needs_root

# What an intruder could try who knows the port: torch's own client, and bytes.
INTRUDE = """
import sys
from datetime import timedelta
import torch.distributed as dist
from tests.other_user import become_nobody
become_nobody()
second = timedelta(seconds=1)
try:
    store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=second)
    store.set("g1/here", "99")
    print("let in", store.list_keys())
except Exception as error:
    print("refused", type(error).__name__)
"""


@pytest.fixture
def server():
    return RankStoreServer("127.0.0.1")


def port_of(server: RankStoreServer) -> int:
    return int(server.address.partition("/")[0].rpartition(":")[2])


def test_ranks_share_keys_and_wait_for_each_other(server):
    """Ranks would not meet, or ranks of two generations would."""
    one, two, other = (RankStore(server.address, prefix) for prefix in ("g1", "g1", "g2"))
    one.set("a", b"\x00\xff")
    assert two.get("a") == b"\x00\xff" and not other.check(["a"])
    assert (one.add("n", 1), two.add("n", 2), other.add("n", 5)) == (1, 3, 5)
    with pytest.raises(dist.DistStoreError, match="no rank has set b"):
        one.wait(["b"], timedelta(milliseconds=20))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(one.wait, ["b", "c"], timedelta(seconds=30))
        two.set("b", "1")
        two.set("c", "1")
        waiting.result()
    assert two.delete_key("c") and not one.check(["b", "c"])


def test_a_wrong_secret_is_refused_and_changes_nothing(server):
    """Every user of the machine could name itself a rank."""
    place = server.address.partition("/")[0]
    right = RankStore(server.address, "g1")
    for secret in ("", "0" * 64, server.address[-63:]):
        with pytest.raises(dist.DistNetworkError, match="the store of rank 0 is lost"):
            RankStore(f"{place}/{secret}", "g1").set("a", "stolen")
    assert not right.check(["a"])


def test_strangers_that_wait_do_not_keep_ranks_out(server):
    """Any user could end the training by connections that say nothing."""
    strangers = [socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(200)]
    strangers[0].settimeout(5)
    with strangers[0].makefile("rb") as oldest:
        assert len(oldest.read()) == 65  # a number; then it has made room
    store = RankStore(server.address, "g1")
    for stranger in strangers:
        stranger.sendall(b"x" * 1000 + b"\n")
    store.set("a", "1")
    assert store.get("a") == b"1"
    for stranger in strangers:
        stranger.close()


def test_the_store_listens_on_the_address_in_use_only():
    """The network would reach the store of a run on the loopback address."""
    server = RankStoreServer("127.0.0.9")
    store, port = open_tcp_store("127.0.0.9", timedelta(seconds=10))
    for found in (port_of(server), port):
        socket.create_connection(("127.0.0.9", found), 5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", found), 5)
    client = dist.TCPStore("127.0.0.9", port, is_master=False, timeout=timedelta(seconds=10))
    client.set("a", "1")
    assert store.get("a") == b"1"


def test_ranks_with_gpus_meet_at_a_store_of_torch_that_rank_0_opens(server):
    """NCCL would not start, or would wait for minutes for a rank 0 that hangs."""
    zero, one, two = (
        (RankStore(server.address, prefix), RankInfo(1, rank, 2, server.address), "127.0.0.1")
        for prefix, rank in (("g1", 0), ("g1", 1), ("g2", 1))
    )
    seconds = timedelta(seconds=20)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(_device_stores, *one, seconds)
        (_, ours), (_, theirs) = _device_stores(*zero, seconds), waiting.result()
    for number, (first, second) in enumerate(zip(ours, theirs, strict=True)):
        first.set("id", str(number))
        assert second.get("id") == str(number).encode()
    assert ours[0].get("id") == b"0"  # groups do not see each other's keys
    began = time.monotonic()
    with pytest.raises(dist.DistStoreError, match="no rank has set device"):
        _device_stores(*two, timedelta(milliseconds=50))
    assert time.monotonic() - began < 10


def test_a_released_server_ends_its_thread():
    """Each trainer of a test would leave a thread and a port."""
    before = set(threading.enumerate())
    server = RankStoreServer("127.0.0.1")
    port = port_of(server)
    [thread] = set(threading.enumerate()) - before
    del server
    thread.join(30)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()


@pytest.fixture
def talk():
    """Return a function that makes both ends of a conversation."""
    made: list[RankChannel] = []

    def make():
        ends = socket.socketpair()
        with ThreadPoolExecutor(2) as threads:
            found = threads.map(
                lambda end, is_server: RankChannel(end, "s", is_server=is_server),
                ends,
                (True, False),
            )
            made.extend(found)
        return made[-2:]

    yield make
    for one in made:
        one.close()


def line_of(message, client):
    """Return the line in which a message would be sent."""
    lines, send_line = [], client._send_line
    client._send_line = lines.append
    client.send(message)
    client._send_line = send_line
    return lines[0]


def test_messages_cannot_be_changed_repeated_or_turned_round(talk):
    """Somebody between two nodes would set keys with the messages of a rank."""
    for forge in (
        lambda line: line.replace(b'"x"', b'"y"'),
        lambda line: line[:-1],
        lambda _: b"",
        lambda line: b"0" * 64 + line[64:],
    ):
        server, client = talk()
        client._send_line(forge(line_of("x", client)))
        with pytest.raises(ChannelRefused):
            server.receive()
    server, client = talk()
    line = line_of("x", client)
    client._send_line(line)
    assert server.receive() == "x"
    for receiver, sender in ((server, client), talk()):  # once more, and in another conversation
        sender._send_line(line)
        with pytest.raises(ChannelRefused):
            receiver.receive()
    server, client = talk()
    client.send({"a": 1})
    server._send_line(server._read_line())  # back to where it came from
    with pytest.raises(ChannelRefused):
        client.receive()


@needs_root
@pytest.mark.slow
def test_a_client_of_torch_that_another_user_runs_is_refused(server):
    """It would read and set the addresses at which ranks find each other."""
    done = as_nobody("-c", INTRUDE, port_of(server))
    assert done.stdout.startswith("refused"), done.stdout + done.stderr
    assert RankStore(server.address, "g1").num_keys() == 0
