"""Folder of a Ray that starts here: nobody else may enter it, and bad places are told."""

import os
import re
import tempfile
from pathlib import Path

import pytest

from cluster.driver.ray_folder import check_place, private_folder
from shards.errors import ConfigError, StreamStopped
from tests.other_user import NOBODY, needs_root
from tests.tinyrun import other_user, reachable_folder

REMEDY = re.compile(r"set RAY_TMPDIR to a folder .* such as RAY_TMPDIR=(\S+), or run with")


def told(place: Path) -> str:
    """Return the sentence about a place that cannot be used; its remedy must work."""
    with pytest.raises(ConfigError) as found:
        check_place(place)
    remedy = REMEDY.search(str(found.value))
    assert remedy is not None
    check_place(Path(remedy[1]))
    return str(found.value)


@needs_root
def test_the_folder_of_another_user_is_named_with_a_way_out() -> None:
    """Ray ends with a traceback of the system, and the advice to run without a cluster."""
    with reachable_folder() as folder, other_user():
        assert f"you cannot write to {folder}, which user root has" in told(folder / "ray")


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link", "mode"])
def test_a_place_in_which_others_can_replace_the_folder_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user would rename the private folder, and put sockets of his own in its place."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        place, target = Path(name, "p"), Path(name, "t")
        (target if kind == "link" else place).mkdir()
        if kind == "link":
            place.symlink_to(target)
        place.chmod(0o777 if kind == "mode" else 0o700)
        if kind != "mode":
            os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        said = "every user can replace" if kind == "mode" else "belongs to user nobody, who could"
        with pytest.raises(ConfigError, match=said) as found, private_folder():
            pass
        remedy = REMEDY.search(str(found.value))
        assert remedy is not None
        monkeypatch.setenv("RAY_TMPDIR", remedy[1])
        with private_folder() as sessions:
            assert sessions.parent.parent == Path(remedy[1])
        Path(remedy[1]).rmdir()
        place.chmod(0o1777)
        os.chown(place, 0, 0, follow_symlinks=False)
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        with private_folder():
            pass


@pytest.mark.parametrize("kind", ["file", "long"])
def test_a_place_that_cannot_be_used_is_told(kind: str, tmp_path: Path) -> None:
    """The path of a socket has 107 characters at most."""
    place = tmp_path / "file" if kind == "file" else Path("/tmp", "x" * 16)
    if kind == "file":
        place.write_text("")
    assert ("is a file" if kind == "file" else "its 21 characters") in told(place)


@pytest.mark.parametrize(
    ("error", "stays"),
    [(ConfigError("a mistake"), False), (StreamStopped("stopped"), False), (OSError(5), True)],
)
def test_only_a_failed_run_leaves_its_logs(
    error: Exception, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of all runs would fill the disk; without logs nobody could say what failed."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        place = Path(name, "r")  # made when it is missing
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        with pytest.raises(type(error)), private_folder() as sessions:
            assert sessions.parent.stat().st_mode & 0o777 == 0o700
            raise error
        assert list(place.iterdir()) == ([sessions.parent] if stays else [])
