"""Another user of the machine attacks a run: nothing runs, nothing is read, each is refused."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamssl.runs.file_names import ACCESS
from streamssl.runs.run_access import read_access
from tests.drills.cluster_runs import check_steps, endless, on_cluster, stop
from tests.drills.processes import Run, asked, started
from tests.listening import Listener, listeners, sockets_of
from tests.other_user import NOBODY, as_nobody, needs_root
from tests.ray_clusters import ray_cluster
from tests.tinyrun import reachable_folder

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CONFIG = endless()
_OPEN = "autoscaler of Ray"  # numbers, as docs/security.md says
# What an intruder tries against a Ray without a token, and with a wrong one.
GUESSES = (
    ("ray", {"RAY_AUTH_MODE": "disabled"}),
    ("tables", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}),
)


def attacked(targets: dict[str, Any], **env: str) -> list[dict[str, str]]:
    """Return what came of each attempt of an intruder."""
    done = as_nobody("-m", "tests.drills.intruder", json.dumps(targets), seconds=300, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    for one in found:
        print(f"{one['what']:<44} {one['refused'] or 'GOT ' + one['got']}")
    return found


def check_all_refused(found: list[dict[str, str]]) -> None:
    """Fail if an attempt got anything."""
    assert found and [one for one in found if not one["refused"]] == []


def gcs_of(found: list[Listener]) -> str:
    [gcs, *_] = [one for one in found if one.role == "gcs_server of Ray"]
    return f"{gcs.address}:{gcs.port}"


def token_of(run: Run) -> str:
    """Return the token of a local Ray, from the environment of its processes."""
    children = psutil.Process(run.process.pid).children(recursive=True)
    tokens = set()
    for child in children:
        with suppress(psutil.Error):  # it ended
            tokens.add(child.environ().get("RAY_AUTH_TOKEN", ""))
    [token] = tokens - {""}
    return token


def private_files(run: Run) -> list[str]:
    """Return files and sockets that another user must not open."""
    pids = [run.process.pid, *(p.pid for p in psutil.Process(run.process.pid).children(True))]
    environments = [f"/proc/{pid}/environ" for pid in pids]
    return [str(run.out / ACCESS), *environments, *map(str, sockets_of(run.process.pid))]


@needs_root
def test_a_run_on_a_local_ray_refuses_another_user(shards_folder: Path) -> None:
    """Code would run as the user who trains, and read what only this user may read."""
    counts = ("--readers", 2, "--trainers", 2)
    options = ("--cluster", "local", *counts, "--debug-ports", "19500-19599")
    env = {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""}  # as most users have it
    with (
        reachable_folder() as folder,
        started(CONFIG, shards_folder, folder / "run", *options, env=env) as run,
    ):
        run.wait_for_step(5)
        found = listeners(run.process.pid)
        print(*found, sep="\n")  # the table of its ports
        assert {one.address for one in found} == {"127.0.0.1"} and len(found) > 5
        ports = [[one.role, one.address, one.port] for one in found]
        page = read_access(run.out).address
        is_of_driver = {int(page.rpartition(":")[2])}
        others = [port for port in ports if port[2] not in is_of_driver and port[0] != _OPEN]
        files = [str(run.out / "config.toml"), *private_files(run)]
        [settings, *private] = attacked({"files": files, "page": page})
        assert settings["got"]  # nothing but its mode protects a file of the run
        check_all_refused(private)
        check_all_refused(attacked({"ports": others}))
        for what, guess in GUESSES:
            check_all_refused(attacked({what: gcs_of(found)}, **guess))
        # The attack itself works: only the token is in its way.
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_of(run)}
        [put, keys] = attacked({"tables": gcs_of(found)}, **known)
        assert put["got"] and keys["got"]
        step = run.last_step
        run.wait_for_step(step + 5)
        status = asked("status", run.out)
        assert status.returncode == 0 and "generation" in status.stdout, status.stderr
        stop(run)
        assert "Traceback" not in run.text, run.text
        check_steps(CONFIG, shards_folder, run.out)


@needs_root
def test_a_joined_ray_refuses_another_user(shards_folder: Path, tmp_path: Path) -> None:
    """A cluster of several users would be open to each of them."""
    with ray_cluster() as cluster:
        cluster.add("readers", num_cpus=2)
        cluster.add("trainers", num_cpus=2)
        with on_cluster(cluster.address, CONFIG, shards_folder, tmp_path / "run") as run:
            run.wait_for_step(3)
            for what, guess in GUESSES:
                check_all_refused(attacked({what: cluster.address}, **guess))
            run.wait_for_step(run.last_step + 3)
            stop(run)


def test_a_cluster_that_refuses_the_token_is_a_sentence(
    shards_folder: Path, tmp_path: Path
) -> None:
    """A traceback of Ray, or a wait of a minute, says nothing about the remedy."""
    with ray_cluster() as cluster:
        for env, said in (
            ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token in $RAY_AUTH_TOKEN; put the token"),
            ({"RAY_AUTH_MODE": "disabled"}, "refuses"),
        ):
            env = {"RAY_ADDRESS": cluster.address, **env}
            options = ("--cluster", "auto", "--readers", 1)
            with started(CONFIG, shards_folder, tmp_path / "run", *options, env=env) as run:
                assert run.end() == 2, run.text
                assert said in run.text and "Traceback" not in run.text, run.text
            run.log.unlink()


@needs_root
@pytest.mark.parametrize("command", [("status",), ("drill", "kill-reader")])
def test_a_prepared_folder_of_another_user_is_refused(command: tuple, tmp_path: Path) -> None:
    """Root would join a Ray of that user, and run what it sends."""
    folder = tmp_path / "theirs"
    (folder / ".control").mkdir(parents=True)
    trap = {"address": "http://127.0.0.1:9", "token": "x", "machine": socket.gethostname()}
    (folder / ACCESS).write_text(json.dumps(trap))
    (folder / ".control" / "place.json").write_text(
        json.dumps({"address": "127.0.0.1:9", "namespace": "streamssl-x"})
    )
    (folder / "config.toml").touch()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    done = asked(*command, folder)
    assert done.returncode == 2 and "belongs to user nobody" in done.stderr, done.stderr


def test_a_run_in_one_process_listens_on_one_port(shards_folder: Path, tmp_path: Path) -> None:
    """The network would reach a run that nobody meant to share."""
    with started(CONFIG, shards_folder, tmp_path / "run") as run:
        run.wait_for_step(5)
        assert [one.address for one in listeners(run.process.pid)] == ["127.0.0.1"]
        stop(run)
