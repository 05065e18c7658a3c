"""Packs that are killed at many moments: the resumed shards have the same bytes."""

import contextlib
import functools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from shards.errors import ManifestError
from shards.pack.fetch import ImageFetcher
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import pack
from shards.pack.sources.folder_entries import entries_from_folder
from shards.stores.image_download import DownloadConfig
from shards.stores.shard_listing import list_shards
from tests.drills.pack_process import CONFIG
from tests.stores import KEYS, connect, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 1,200 images in three sub-folders: thirty shards."""
    folder = tmp_path_factory.mktemp("data") / "images"
    with ImageFetcher(DownloadConfig()) as fetcher:
        for number, entry in enumerate(entries_from_synthetic(1200, size=32).entries):
            path = folder / "abc"[number % 3] / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.read(fetcher))
    return folder


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of an uninterrupted pack, by name."""
    out = tmp_path_factory.mktemp("expected") / "out"
    pack(entries_from_folder(images), out, CONFIG)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@contextmanager
def packing(source: Path, out: object, num_workers: int) -> Iterator[subprocess.Popen[str]]:
    """Run a pack as a process, which is killed at the end."""
    module = "tests.drills.pack_process"
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(source), str(out), str(num_workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Return True if the condition came true before the process ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "timeout"
    return True


def num_shards(out: Path) -> int:
    return len(list(out.glob("*.tar")))


def moments(out: Path, rng: random.Random) -> Iterator[Callable[[], bool]]:
    """Yield conditions on the folder at which the process is killed."""
    yield lambda: out.exists()
    yield lambda: (out / "pack.unfinished.json").exists()
    yield lambda: any(out.glob(".*.tar.part-*"))
    for more in (1, 4, 9):
        wanted = num_shards(out) + more
        yield lambda wanted=wanted: num_shards(out) >= wanted  # type: ignore[misc]
    yield lambda: any(out.glob(".*.json.draft"))
    yield lambda: time.sleep(rng.uniform(0, 0.02)) is None and num_shards(out) > 20
    yield lambda: (out / "pack.json").exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_pack_killed_at_many_moments_ends_with_the_same_bytes(
    num_workers: int, images: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A kill at start, write, rename or report would leave half a shard or an orphan process."""
    out, num_kills = tmp_path / "out", 0
    for moment in moments(out, random.Random(num_workers)):
        with packing(images, out, num_workers) as process:
            was_killed = wait_for(process, moment)
            children = psutil.Process(process.pid).children() if was_killed else []
            process.kill()
            process.wait(TIMEOUT_SECONDS)
        num_kills += was_killed
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == [], "workers must die with their parent"
        finished = {n: data for n, data in contents(out).items() if not n.startswith(".")}
        mark = finished.pop("pack.unfinished.json", None)
        assert finished.items() <= expected.items()
        if mark is not None and num_shards(out):
            with pytest.raises(ManifestError, match="unfinished pack"):
                list_shards(str(out))
    with packing(images, out, num_workers) as process:
        text, error = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == 0, error
    assert num_kills >= 6, "too few kills to prove anything"
    assert contents(out) == expected
    assert int(text.split()[1]) > 20


def test_packs_into_a_bucket_that_are_killed_end_with_the_same_bytes(
    images: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed upload would leave a partial object."""
    with s3_server() as address:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        client = connect(address)
        client.create_bucket(Bucket="drill")

        def names() -> set[str]:
            listed = client.list_objects_v2(Bucket="drill", Prefix="out/").get("Contents", [])
            return {entry["Key"].rpartition("/")[2] for entry in listed}

        for wanted in (1, 12, 40):
            with packing(images, "s3://drill/out", 2) as process:
                assert wait_for(process, lambda wanted=wanted: len(names()) >= wanted)
                process.kill()
                process.wait(TIMEOUT_SECONDS)
            assert "pack.json" not in names()
        with packing(images, "s3://drill/out", 2) as process:
            _, error = process.communicate(timeout=TIMEOUT_SECONDS)
            assert process.returncode == 0, error
        found = {
            name: client.get_object(Bucket="drill", Key=f"out/{name}")["Body"].read()
            for name in names()
        }
        client.close()
    assert found == expected


def interrupted(command: list[str], out: Path) -> tuple[subprocess.Popen[str], str, str]:
    """Send Ctrl-C after two shards; return the process, its output and its errors."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background processes with SIGINT ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_for(process, lambda: num_shards(out) >= 2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        text, error = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process, text, error


def test_ctrl_c_prints_one_line_and_keeps_finished_shards(
    images: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A terminal sends it to all processes of the group; each would print a traceback."""
    out = tmp_path / "out"
    options = ["--samples-per-shard", "40", "--workers", "2"]
    command = [sys.executable, "-m", "streamssl.cli", "shards", "pack", str(images), str(out)]
    for _ in range(5):  # on a busy machine the pack may finish before the signal
        process, text, error = interrupted([*command, *options], out)
        if process.returncode:
            break
        shutil.rmtree(out)
    assert process.returncode == 130 and error == "streamssl: interrupted\n"
    assert "of 30 shards are finished; the same command goes on" in text
    assert not list(out.glob(".*")) and (out / "pack.unfinished.json").exists()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "by an earlier start" in done.stdout
    assert contents(out) == expected
    assert multiprocessing.active_children() == []
