"""Building the crop kernel: one pin, one set of bytes, and messages whose remedies work."""

import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from shards.crops.kernel.compile import LIBRARY, PLATFORMS, SOURCES, build_library, this_platform
from shards.crops.kernel.crop_kernel import CropKernel
from shards.errors import ConfigError
from tests.shards.crops.golden_kernel import GOLDEN, golden_digest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REMEDY = "run `make kernel` in the folder of the project"


@pytest.fixture
def folder(tmp_path):
    """Return a copy of the kernel's folder, in a path with blanks."""
    return Path(shutil.copytree(SOURCES, tmp_path / "a b" / "kernel"))


def test_the_compiler_is_pinned_once():
    """Two versions would give two libraries; a reader on a cluster needs no compiler."""
    [pin] = [one for one in PROJECT["build-system"]["requires"] if one.startswith("ziglang")]
    assert re.fullmatch(r"ziglang==[\d.]+", pin)
    assert pin in PROJECT["project"]["optional-dependencies"]["dev"]
    assert pin in (ROOT / "requirements.txt").read_text().splitlines()
    assert "ziglang" not in str(PROJECT["project"]["dependencies"])
    assert "ziglang" not in (ROOT / "cluster" / "deploy" / "requirements.txt").read_text()


@pytest.mark.parametrize(
    ("system", "machine", "found"),
    [
        ("win32", "AMD64", "win32-AMD64, 64 bits"),
        ("linux", "armv7l", "linux-armv7l, 64 bits"),
        ("darwin", "ppc", "darwin-ppc, 64 bits"),
    ],
)
def test_other_machines_are_refused_in_a_sentence(monkeypatch, system, machine, found):
    """A traceback of a build would not say that it can never work."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit, match=rf"no build for this Python \({found}\).*use a Python"):
        this_platform()


def test_a_musl_system_is_refused_in_a_sentence(monkeypatch):
    """The library would be built, and not load."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(SystemExit, match=r"without glibc.*and glibc on Linux"):
        this_platform()


def test_a_library_that_cannot_be_built_there_is_told_in_a_sentence(tmp_path):
    """A traceback of `make` would not say what to change."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"cannot be written to \S+ \(.*\); make room, or run"):
        build_library(tmp_path / "file" / LIBRARY)
    with pytest.raises(SystemExit, match=r"no platform 'linux-riscv'; give one of linux-x86_64, "):
        build_library(tmp_path / LIBRARY, "linux-riscv")


def test_a_missing_library_is_named_with_its_remedy(folder):
    """A reader would end with a traceback of ctypes."""
    (folder / LIBRARY).unlink()
    with pytest.raises(ConfigError, match=rf"cannot be loaded \(.*{LIBRARY}.*\); {REMEDY}"):
        CropKernel(path=folder / LIBRARY)
    (folder / LIBRARY).write_bytes(b"\x7fELF, and no more")
    with pytest.raises(ConfigError, match=rf"cannot be loaded \(.*\); {REMEDY}"):
        CropKernel(path=folder / LIBRARY)


def test_a_library_of_other_sources_is_refused(folder):
    """After `git pull` a run would crop as before, and not as the code says."""
    with (folder / "blur.h").open("a") as file:
        file.write("/* changed */\n")
    with pytest.raises(ConfigError, match=rf"compiled from other sources \(\w+\).*; {REMEDY}"):
        CropKernel(path=folder / LIBRARY)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_library_that_crops_otherwise_is_refused_and_the_remedy_mends_it(folder):
    """Training goes on with wrong crops; nobody sees it."""
    command = [sys.executable, str(folder / "compile.py")]
    colours = folder / "colours.h"
    text = colours.read_text()
    colours.write_text(text.replace("+ 16000;", "+ 12000;"))
    assert colours.read_text() != text
    subprocess.run(command, check=True)
    with pytest.raises(ConfigError, match=rf"gives wrong crops on this machine \(\w+ at.*{REMEDY}"):
        CropKernel(path=folder / LIBRARY)
    colours.write_text(text)
    subprocess.run(command, check=True)
    # A process keeps a library that it has loaded, so another place is needed here.
    mended = shutil.copytree(folder, folder.with_name("mended"))
    assert golden_digest(CropKernel(path=Path(mended) / LIBRARY)) == GOLDEN
    assert (folder / LIBRARY).read_bytes() == (SOURCES / LIBRARY).read_bytes()


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", PLATFORMS)
def test_it_compiles_for_every_platform(folder, target):
    """Wheels of other machines would fail in their release."""
    (folder / LIBRARY).unlink()
    build_library(folder / LIBRARY, target)
    assert (folder / LIBRARY).stat().st_size < 200_000


BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def built(kind, project, out):
    """Return the archive that setuptools builds of a project, as pip asks it to."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_archives_are_whole_and_their_wheel_gives_the_golden_crops(tmp_path):
    """An archive without the C sources builds nothing; a wheel for `any` machine breaks on most."""
    project = tmp_path / "the project"
    leave = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("shards", "cluster", "streamssl"):
        shutil.copytree(ROOT / name, project / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    with tarfile.open(built("build_sdist", project, tmp_path)) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    [source] = (tmp_path / "sdist").iterdir()
    wheel = built("build_wheel", source, tmp_path)
    assert re.search(
        rf"-py3-none-manylinux\S*manylinux_2_17_{platform.machine()}\S*\.whl$", wheel.name
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    kernel = tmp_path / "installed" / "shards" / "crops" / "kernel"
    assert {path.name for path in kernel.iterdir()} == {
        path.name for path in SOURCES.iterdir() if path.name != "__pycache__"
    }
    assert (kernel / LIBRARY).read_bytes() == (SOURCES / LIBRARY).read_bytes()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "shards" / "crops" / "golden_kernel.py")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(GOLDEN) >= 1
