"""Room for the objects of Ray: small memories, and the remedies that are named."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.driver.ray_room import StoreRoom, check_store, store_bytes
from cluster.ray_internals import MAX_SLOW_STORE_BYTES
from shards.errors import ConfigError

GB, MB = 1 << 30, 1 << 20
MACHINE = StoreRoom(shared=16 * GB, on_disk=500 * GB, memory=64 * GB, folder=Path("/tmp/s/r"))
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
        (20 * GB, {"shared": 64 * MB, "on_disk": 15 * GB}, "error: /dev/shm has 64 MiB free"),
        (200 * GB, {"shared": 64 * MB, "on_disk": 1 * GB}, "error: the object store of this run"),
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
