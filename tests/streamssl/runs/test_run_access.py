"""Access of commands to a run: found by its user, refused to others, and never unpickled."""

import json
import os
import pickle
import socket
import stat
from dataclasses import asdict

import pytest

from cluster.driver.desk_client import DeskClient
from cluster.driver.fault_drill import DrillTarget
from cluster.driver.run_desk import RunDesk
from cluster.monitoring.http_server import HttpResponse, HttpServer
from shards.errors import ConfigError
from streamssl.cli import main
from streamssl.runs.file_names import ACCESS
from streamssl.runs.run_access import RunAccess, open_to_commands, read_access
from tests.other_user import NOBODY, needs_root

TOKEN = "e" * 64


class Trap:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return os.system, ('mkdir "$TRAP"',)


def write_access(folder, **changes):
    fields = asdict(RunAccess("http://127.0.0.1:9", TOKEN, socket.gethostname())) | changes
    (folder / ACCESS).write_text(json.dumps(fields))
    (folder / "config.toml").touch()


def test_the_access_is_private_and_ends_with_the_run(tmp_path):
    """Another user would read the token; a command would ask a port that others have by now."""
    with open_to_commands(tmp_path, "http://127.0.0.1:9464", TOKEN):
        assert stat.S_IMODE((tmp_path / ACCESS).stat().st_mode) == 0o600
        found = read_access(tmp_path)
        assert (found.address, found.token) == ("http://127.0.0.1:9464", TOKEN)
    with pytest.raises(ConfigError, match=r"is not a run .*no config\.toml"):
        read_access(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match="does not train now"):
        read_access(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "http://10.0.0.7:80"}, "it must be http://127.0.0.1:PORT: start"),
        ({"address": "http://127.0.0.1:80/x"}, "it must be http://127.0.0.1:PORT: start"),
        ({"address": "file:///etc/passwd"}, "it must be http://127.0.0.1:PORT: start"),
        ({"address": "http://127.0.0.1:70000"}, "it must be http://127.0.0.1:PORT: start"),
        ({"address": 7}, "cannot be read (a value is no text); stop the run and start it"),
        ({"token": None}, "cannot be read (a value is no text); stop the run and start it"),
        ({"more": "fields"}, "cannot be read (RunAccess.__init__() got"),
        ({"machine": "elsewhere"}, "on the machine elsewhere; give this command there"),
    ],
)
@pytest.mark.parametrize("command", [["status"], ["drill", "kill-reader"]])
def test_a_damaged_access_is_a_sentence(tmp_path, capsys, command, changes, said):
    """A command would ask any address of the network, or end in a traceback."""
    write_access(tmp_path, **changes)
    assert main([*command, str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("streamssl: ") and said in line


def test_a_deeply_nested_access_is_a_sentence(tmp_path, capsys):
    """The parser of JSON raises no ValueError then."""
    (tmp_path / ACCESS).write_text("[" * 100_000)
    assert main(["status", str(tmp_path)]) == 2
    assert "cannot be read (maximum recursion depth" in capsys.readouterr().err


@needs_root
@pytest.mark.parametrize("command", [["status"], ["drill", "hang"]])
def test_a_run_folder_of_another_user_is_refused(tmp_path, capsys, command):
    """Its owner would decide what root asks, and of whom."""
    write_access(tmp_path)
    os.chown(tmp_path / ACCESS, NOBODY, NOBODY)
    assert main([*command, str(tmp_path)]) == 2
    assert "belongs to user nobody, and only its owner may use it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps(Trap()),
        b"[]",
        b"{}",
        b'{"term": "x"}',
        b"\xff\x00",
        b'{"readings": 3}',
        b"[" * 200_000,
        b'{"target": {"names": ["a"], "node": "n", "pid": Infinity}, "seconds": 0}',
    ],
)
def test_an_answer_that_is_no_status_is_a_sentence(body, monkeypatch, tmp_path):
    """Whoever has the port by now would run code as the user of the command."""
    monkeypatch.setenv("TRAP", str(tmp_path / "trapped"))
    pages = {path: lambda _: HttpResponse(body) for path in ("/status", "POST /drill")}
    with HttpServer(pages, token=TOKEN) as server:
        client = DeskClient(f"http://{server.address}", TOKEN)
        with pytest.raises(ConfigError, match="is no run of this version"):
            client.status()
        with pytest.raises(ConfigError, match="is no run of this version"):
            client.drill("kill-reader", "")
    assert not (tmp_path / "trapped").exists()


def test_a_hang_that_cannot_be_ended_is_told():
    """A drill would go on, and report a run that recovers from a hang that lasts."""
    pages = {"POST /continue": lambda _: HttpResponse(b"the node is lost", status=503)}
    with HttpServer(pages, token=TOKEN) as server:
        client = DeskClient(f"http://{server.address}", TOKEN)
        with pytest.raises(ConfigError, match="the node is lost"):
            client.resume(DrillTarget(names=("trainer-0",), node="n"))


def test_a_run_that_begins_or_ends_is_no_error_of_ray():
    """A question before Ray has started would start another Ray."""
    with HttpServer(RunDesk().pages, token=TOKEN) as server:
        client = DeskClient(f"http://{server.address}", TOKEN)
        assert client.try_status() is None
        with pytest.raises(ConfigError, match="no Control of this run answers"):
            client.status()
        with pytest.raises(ConfigError, match="it begins, or ends"):
            client.drill("kill-reader", "")
        with pytest.raises(ConfigError, match="must be one of kill-reader"):
            client.drill("format-disk", "")
    with HttpServer({}, token=TOKEN) as server:
        client = DeskClient(f"http://{server.address}", TOKEN)
        with pytest.raises(ConfigError, match="trains in one process and has no Control"):
            client.status()
    with pytest.raises(ConfigError, match="no run answers at"):
        client.status()
