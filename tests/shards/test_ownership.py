"""Files of this user alone, and files of others, which no command follows."""

import os
import stat

import pytest

from shards.errors import ConfigError
from shards.ownership import read_own, write_private
from tests.other_user import NOBODY, needs_root


def test_a_private_file_is_private_whatever_the_umask_is(tmp_path):
    """Another user would read the token of a run."""
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        write_private(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and read_own(path, "") == "new"
    assert os.listdir(tmp_path) == ["token"]


def test_a_link_in_the_place_of_the_draft_is_not_followed(tmp_path):
    """The token would be written into a file of another user's choice."""
    (tmp_path / ".token.draft").symlink_to(tmp_path / "target")
    write_private(tmp_path / "token", "new")
    assert not (tmp_path / "target").exists()


def test_a_pipe_is_no_file(tmp_path):
    """The command would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe is no file; name another"):
        read_own(tmp_path / "pipe", "name another")


def test_a_link_to_a_file_of_this_user_is_not_followed(tmp_path):
    """The folder of another user would choose which of this user's runs a drill breaks."""
    (tmp_path / "mine").write_text("{}")
    (tmp_path / "access").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"access is a link, .*; name another"):
        read_own(tmp_path / "access", "name another")


@needs_root
def test_a_file_of_another_user_is_refused(tmp_path):
    """It would send root to any address."""
    path = tmp_path / "access"
    path.write_text("{}")
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=r"belongs to user nobody, and only its owner .*; be him"):
        read_own(path, "be him")
