"""The crop kernel under checkers of memory: no argument makes it touch what is not its own.

A library with the sanitizers of a compiler, and the one that is shipped, crop thousands of random
views between pages that may not be touched. `--share 1` runs all cases; the first of them run else.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.crops.kernel.compile import (
    LIBRARY,
    PLATFORMS,
    SOURCES,
    find_compiler,
    source_digest,
    this_platform,
)

ROOT = Path(__file__).parents[2]
BLOCKS = Path(__file__).with_name("checked_block.c")
COMMON = ("-std=gnu11", "-O1", "-g", "-fPIC", "-ffp-contract=off", "-w", "-DCHECKED_SCRATCH")
UNDEFINED = "undefined,float-cast-overflow"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def checked_library(folder, compiler, levels, flags):
    """Compile the kernel with checks into `folder`, beside a copy of its sources."""
    for path in SOURCES.glob("*.[ch]"):
        shutil.copy(path, folder)
    objects = [f"views{number}.o" for number in range(len(levels))]
    command = (*compiler, *COMMON, *flags)
    commands = [
        (*command, level, "-c", "views.c", "-o", file)
        for level, file in zip(levels, objects, strict=True)
    ]
    define = f'-DSOURCE_DIGEST="{source_digest()}-checked"'
    parts = ("kernel.c", str(BLOCKS), *objects)
    commands.append((*command, define, "-shared", *parts, "-lm", "-o", LIBRARY))
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / LIBRARY


def child(library, marks, *arguments, **variables):
    """Run the child and return its status and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drills.kernel_child", library, marks, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def crop_random_views(library, folder, seed, num_small, share, **variables):
    """Crop many small views and a few large ones; a fault names its case."""
    marks = folder / "marks"
    for num, max_size in ((num_small, 100), (num_small // 60, 4096)):
        num = max(2, int(num * share))
        status, errors = child(library, marks, seed, 0, num, max_size, **variables)
        about = marks.read_text().rstrip() if marks.exists() else "no case"
        assert status == 0, f"status {status} at {about}; {errors[:3000]}"


def test_the_shipped_library_touches_nothing_else(tmp_path, share):
    """A crop at the end of a buffer would kill a reader, or change the crop behind it."""
    crop_random_views(SOURCES / LIBRARY, tmp_path, 1, 10_000, share)


def test_a_byte_too_many_ends_the_child(tmp_path):
    """The guard pages themselves must work, or nothing is checked."""
    status, _ = child(SOURCES / LIBRARY, tmp_path / "marks", "beyond")
    assert status == -signal.SIGSEGV


def test_no_operation_is_undefined(tmp_path, share):
    """An overflow or a shift too far does what this compiler likes; the next may like another."""
    target, levels = PLATFORMS[this_platform()]
    compiler = (str(find_compiler()), "cc", "-target", target)
    flags = (f"-fsanitize={UNDEFINED}", "-fno-sanitize-recover=all")
    library = checked_library(tmp_path, compiler, [f"-mcpu={level}" for level in levels], flags)
    crop_random_views(library, tmp_path, 2, 6_000, share)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc, whose runtime has ASan")
def test_no_byte_beside_a_block_is_touched(tmp_path, share):
    """Guard pages miss a few bytes between a block and the page; ASan does not."""
    levels = [f"-march={level.replace('_', '-')}" for level in PLATFORMS[this_platform()][1]]
    flags = ("-fwrapv", f"-fsanitize=address,{UNDEFINED}", "-fno-sanitize-recover=all")
    library = checked_library(tmp_path, ("gcc",), levels, flags)
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    preload = {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    crop_random_views(library, tmp_path, 3, 4_000, share, **preload)
