"""Pages of a run: whom they answer, and what everybody else reads."""

import http.client
import socket

import pytest

from cluster.monitoring.http_server import HttpResponse, HttpServer
from cluster.monitoring.page_access import OPEN_PAGES, PageAccess, host_name
from tests.other_user import as_nobody, needs_root

TOKEN = "f" * 64
SECRET = "images of the user"
PAGES = {
    path: lambda _: HttpResponse(SECRET.encode())
    for path in ("/", "/state", "/gallery", "/stacks", "/metrics", "/healthz", "POST /drill")
}
ASK = """
import sys, urllib.request
from tests.other_user import become_nobody
become_nobody()
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=10).read().decode())
    except OSError as error:
        print(error.code, error.read().decode())
"""


def ask(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


@pytest.fixture
def server():
    with HttpServer(PAGES, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example", "10.0.0.7", "", "127.0.0.1.evil.example"]
)
@pytest.mark.parametrize("path", ["/", "/state", "/gallery", "/stacks"])
def test_names_of_others_are_refused(server, path, name):
    """A page of the web whose name resolves to this machine would read training images."""
    port = server.address.rpartition(":")[2]
    status, text = ask(server, path, Host=f"{name}:{port}", Authorization=f"Bearer {TOKEN}")
    assert status == 403 and SECRET not in text
    assert f"open http://{server.address}/ instead" in text


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_loopback_names_are_answered(server, name):
    """A page through `ssh -L` would be refused."""
    port = server.address.rpartition(":")[2]
    assert ask(server, "/state", Host=f"{name}:{port}") == (200, SECRET)
    assert ask(server, "/state", Host=name) == (200, SECRET)


def test_numbers_are_read_under_an_address_of_the_machine(server):
    """A Prometheus that scrapes a pod by its address would get nothing; a name is a rebinding."""
    assert ask(server, "/metrics", Host="10.0.0.7:9464")[0] == 200
    assert ask(server, "/metrics", Host="evil.example")[0] == 403


def test_nothing_is_changed_without_the_token(server):
    """A page of the web could break a run: browsers send such requests to every address."""
    assert ask(server, "/drill", "POST")[0] == 403
    assert ask(server, "/drill", "POST", Authorization="Bearer 0")[0] == 403
    assert ask(server, "/drill", "POST", Authorization=f"Bearer {TOKEN}") == (200, SECRET)
    assert ask(server, "/drill")[0] == 404


def test_beyond_loopback_only_the_token_opens_a_page():
    """Every client that reaches a node would read the stacks of a run."""
    ends = ("10.0.0.9", 4000), ("10.0.0.7", 9500)
    access = PageAccess("10.0.0.7", TOKEN)
    for path in ("/stacks", "/metrics", "/state"):
        assert "needs the token" in access.refusal(path, {"Host": "10.0.0.7:9500"}, *ends)
        headers = {"Host": "10.0.0.7:9500", "Authorization": f"Bearer {TOKEN}"}
        assert access.refusal(path, headers, *ends) == ""
    assert access.refusal("/healthz", {"Host": "10.0.0.7"}, *ends) == ""
    empty = {"Host": "10.0.0.7", "Authorization": "Bearer "}
    assert "has none: start Ray" in PageAccess("10.0.0.7").refusal("/stacks", empty, *ends)


@pytest.mark.slow
def test_idle_connections_do_not_keep_others_out(server):
    """Whoever opens connections and says nothing would end the page of the run."""
    host, _, port = server.address.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(300)]
    assert ask(server, "/state") == (200, SECRET)
    for one in idle:
        one.close()


@needs_root
def test_another_user_of_the_machine_reads_numbers_only(server):
    """The loopback address is open to every user of a shared machine."""
    paths = ("/", "/state", "/gallery", "/stacks", "/metrics")
    done = as_nobody("-c", ASK, *(f"http://{server.address}{path}" for path in paths))
    *refused, numbers = done.stdout.replace("\n\n", "\n").splitlines()
    assert len(refused) == 4 and numbers == SECRET, done.stdout + done.stderr
    assert all(line.startswith("403 this page is for user root alone") for line in refused)


def test_open_pages_hold_numbers():
    """A page with names or images that is added there would be open to everybody."""
    assert {"/metrics", "/sd", "/healthz"} == OPEN_PAGES
    assert host_name("[::1]:80") == "[::1]" and host_name("A:80") == "a" and host_name("b") == "b"
