"""Tokens of Ray: who is let in by default, and what a user reads about it."""

import os
import subprocess
import sys

import pytest

from cluster.ray_access import (
    MODE,
    TOKEN,
    TOKEN_FILE,
    access_warnings,
    check_found,
    is_named,
    ray_variables,
    read_token,
)
from shards.errors import ConfigError
from tests.other_user import NOBODY, needs_root


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch, tmp_path):
    """A user without any setting."""
    for name in (MODE, TOKEN, TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_ray_that_starts_here_has_a_token_of_its_own(monkeypatch):
    """Every user of the machine could run code in it; a shared token would outlive the run."""
    found = []
    for _ in range(2):
        with ray_variables("local"):
            assert os.environ[MODE] == "token"
            found.append(os.environ[TOKEN])
    assert len(set(found)) == 2 and all(len(token) == 64 for token in found)
    assert MODE not in os.environ and TOKEN not in os.environ
    monkeypatch.setenv(TOKEN, "of a cluster")
    with ray_variables("local"):
        assert os.environ[TOKEN] != "of a cluster"
    assert os.environ[TOKEN] == "of a cluster" and access_warnings("local") == []


def test_a_ray_without_a_token_is_a_wish_of_the_user(monkeypatch):
    """Nobody would know that others are let in."""
    monkeypatch.setenv(MODE, "disabled")
    [line] = access_warnings("local")
    assert line.startswith("RAY_AUTH_MODE=disabled: every user of this machine can run code as you")
    assert "everybody who reaches it" in access_warnings("auto")[0]
    with ray_variables("local"):
        assert os.environ[MODE] == "disabled" and TOKEN not in os.environ


@pytest.mark.parametrize("address", ["auto", "ray://head:10001"])
def test_a_cluster_is_joined_with_its_token_only(address, monkeypatch, tmp_path):
    """Ray would make a token that fits no cluster, or join without any."""
    remedy = (
        rf"there is no token for the Ray at '{address}' .* export {TOKEN_FILE}=FILE; .*disabled"
    )
    with pytest.raises(ConfigError, match=remedy), ray_variables(address):
        pass
    path = tmp_path / "token"
    path.write_text("  \n")
    monkeypatch.setenv(TOKEN_FILE, str(path))
    with pytest.raises(ConfigError, match="holds none"), ray_variables(address):
        pass
    path.write_text("secret\n")
    path.chmod(0o644)
    with ray_variables(address):
        assert os.environ[MODE] == "token" and read_token() == "secret"
    assert access_warnings(address) == [
        f"{path} holds the token of the Ray, and other users can read it: run `chmod 600 {path}`"
    ]
    path.chmod(0o600)
    assert access_warnings(address) == []


def test_an_unknown_mode_is_refused(monkeypatch):
    """A typing error would be as good as no token."""
    monkeypatch.setenv(MODE, "tokens")
    with pytest.raises(ConfigError, match=r"RAY_AUTH_MODE='tokens'; it must be token or disabled"):
        access_warnings("none-of-them")


@pytest.mark.parametrize(
    ("address", "variable", "named"),
    [("auto", "", False), ("auto", "auto", False), ("auto", "h:1", True), ("h:1", "", True)],
)
def test_a_cluster_that_ray_looks_for_is_not_named(address, variable, named, monkeypatch):
    """Ray takes RAY_ADDRESS=auto as a wish to look for a cluster of any user."""
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert is_named(address) is named


@needs_root
def test_a_ray_of_another_user_is_not_joined_unasked():
    """Ray finds clusters by command lines and a file in /tmp, which every user can choose."""
    script = "import os, sys; os.setuid(int(sys.argv[1])); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", script, str(NOBODY), "--gcs-address=192.0.2.1:6379"]
    with subprocess.Popen(command, **pipes) as fake:
        fake.stdout.readline()
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1:6379 belongs to user nobody, who cou"):
            check_found("192.0.2.1:6379")
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1:6380 has no process of yours"):
            check_found("192.0.2.1:6380")
        with subprocess.Popen([*command[:3], "0", *command[4:]], **pipes) as ours:
            ours.stdout.readline()
            check_found("192.0.2.1:6379")
            ours.communicate(b"\n")
        fake.communicate(b"\n")
