"""Room for Ray: folders of others, small memories, and the remedies that are named."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.driver.ray_room import StoreRoom, check_folder, check_store, store_bytes
from cluster.ray_internals import MAX_SLOW_STORE_BYTES, ray_folder
from shards.errors import ConfigError
from tests.tinyrun import other_user, reachable_folder

GB, MB = 1 << 30, 1 << 20
MACHINE = StoreRoom(shared=16 * GB, on_disk=500 * GB, memory=64 * GB, folder=Path("/tmp/ray"))
STREAM, OTHERS = 2 * GB, 300 * MB


def told(room: StoreRoom, stream: int = STREAM) -> str:
    """Return what a user reads: the warning, or the error."""
    try:
        return check_store(room, stream + OTHERS, stream)
    except ConfigError as error:
        return f"error: {error}"


def test_a_machine_with_room_is_not_warned() -> None:
    """A warning without a cause would be ignored later."""
    assert told(MACHINE) == ""
    wanted = store_bytes(STREAM + OTHERS)
    assert told(replace(MACHINE, shared=wanted, on_disk=0)) == ""


@pytest.mark.parametrize(
    ("stream", "changes", "start"),
    [
        (STREAM, {"shared": 64 * MB}, "warning: /dev/shm has 64 MiB free, and the object store"),
        (STREAM, {"shared": 2 * GB}, "warning: /dev/shm has 2,048 MiB free"),
        (STREAM, {"shared": 64 * MB, "on_disk": 1 * GB}, "error: /dev/shm has 64 MiB free"),
        (20 * GB, {"shared": 64 * MB}, "error: /dev/shm has 64 MiB free"),
        (200 * GB, {}, "error: the object store of this run wants"),
    ],
)
def test_a_small_memory_is_told_with_remedies_that_fit(
    stream: int, changes: dict[str, int], start: str
) -> None:
    """Ray is slow without a word, raises, or its raylet dies when the store fills."""
    room = replace(MACHINE, **changes)
    text = told(room, stream)
    assert text.startswith(start), text
    if wanted := re.search(r"--shm-size=(\d+)m", text):
        assert told(replace(room, shared=int(wanted[1]) * MB), stream) == ""
    for number in re.findall(r"--stream.max-bytes (\d+)", text):
        after = told(room, int(number))
        assert not after.startswith("error") and after != text
    if room.shared < room.memory and "warning" in text:
        assert "--shm-size" in text and "RAY_TMPDIR" in text
    assert "--shm-size" in text or "--stream.max-bytes" in text


def test_a_store_that_ray_accepts_slowly_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own variable would be in vain."""
    room = replace(MACHINE, shared=64 * MB)
    assert store_bytes(20 * GB) > MAX_SLOW_STORE_BYTES
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    assert told(room, 20 * GB).startswith("warning: /dev/shm")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_the_folder_of_another_user_is_named_with_a_way_out() -> None:
    """Ray ends with a traceback of the system, and the advice to run without a cluster."""
    with reachable_folder() as folder:
        taken = folder / "ray"
        taken.mkdir(mode=0o755)
        with other_user(), pytest.raises(ConfigError) as found:
            check_folder(taken)
        own = re.search(r"RAY_TMPDIR=(\S+) before the same command", str(found.value))
        assert f"{taken} belongs to user root" in str(found.value) and own is not None
        with other_user():
            check_folder(Path(own[1]) / "ray")


@pytest.mark.parametrize("kind", ["file", "long"])
def test_a_folder_that_ray_cannot_use_is_told(kind: str, tmp_path: Path) -> None:
    """A socket has a name of at most 107 characters."""
    folder = tmp_path / "ray" if kind == "file" else Path("/tmp", "x" * 60, "ray")
    if kind == "file":
        folder.write_text("")
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=/tmp/ray-\S+ before the same command"):
        check_folder(folder)


def test_the_folder_is_where_ray_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade of Ray may read another variable, and the remedy would not work."""
    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    assert ray_folder() == Path("/somewhere/ray")
