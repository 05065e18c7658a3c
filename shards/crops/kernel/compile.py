"""Compilation of the crop kernel into one library that holds every level of `lanes.h`.

The compiler is the one in the wheel `ziglang`. So no compiler has to be on the machine, and the
same sources give the same bytes everywhere. `python shards/crops/kernel/compile.py [FILE
[PLATFORM]]` compiles before the project is installed, so this file imports nothing of it.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent
LIBRARY: Final = "libcrops.so"
# Values of -mcpu by the level of `lanes.h`; the first is what every CPU of this kind has. All ARMs
# of 64 bits have vectors of 16 bytes.
_X86 = ("x86_64", "x86_64_v2", "x86_64_v3", "x86_64_v4")
_ARM = ("generic",)
# Target and levels by platform. The C library and the systems are the oldest that wheels with the
# tags of `build` may meet.
PLATFORMS: Final = {
    "linux-x86_64": ("x86_64-linux-gnu.2.17", _X86),
    "linux-aarch64": ("aarch64-linux-gnu.2.17", _ARM),
    "darwin-x86_64": ("x86_64-macos.11.0", _X86),
    "darwin-arm64": ("aarch64-macos.11.0", _ARM),
}
# Weights are computed in doubles: a contracted operation would change their last bit.
_FLAGS: Final = (
    "-std=gnu11", "-O3", "-fPIC", "-fwrapv", "-ffp-contract=off", "-g0", "-Wall", "-Wextra",
    "-Werror",
)  # fmt: skip


def source_digest(folder: Path = SOURCES) -> str:
    """Return 16 hex digits over the C sources in `folder` and how they are compiled."""
    digest = hashlib.sha256(repr((PLATFORMS, _FLAGS)).encode())
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_library(to: Path = SOURCES / LIBRARY, target_platform: str | None = None) -> None:
    """Compile every level into the library `to`, unless it is that already.

    `target_platform` is a key of `PLATFORMS`; None is this machine. Raises SystemExit with a
    sentence.
    """
    name = target_platform or this_platform()
    if name not in PLATFORMS:
        raise SystemExit(f"streamssl: no platform {name!r}; give one of {', '.join(PLATFORMS)}")
    target, levels = PLATFORMS[name]
    define = f'-DSOURCE_DIGEST="{source_digest()}-{target}"'
    if to.is_file() and define.partition("=")[2].strip('"').encode() in to.read_bytes():
        _write(to.touch, to)  # for `make`
        return
    _write(lambda: to.parent.mkdir(parents=True, exist_ok=True), to)
    compiler = (str(find_compiler()), "cc", *_FLAGS, "-target", target)
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/views{level}.o" for level in range(len(levels))]
        commands = [
            (*compiler, f"-mcpu={cpu}", "-c", "views.c", "-o", file)
            for cpu, file in zip(levels, objects, strict=True)
        ]
        _run(commands, folder)
        _run(
            [
                (
                    *compiler,
                    define,
                    "-shared",
                    "-s",
                    "kernel.c",
                    *objects,
                    "-o",
                    f"{folder}/{LIBRARY}",
                )
            ],
            folder,
        )
        _write(lambda: _replace(to, f"{folder}/{LIBRARY}"), to)


def this_platform() -> str:
    """Return the key of `PLATFORMS` for this Python. Raises SystemExit with a sentence."""
    name = f"{sys.platform}-{platform.machine()}"
    is_musl = sys.platform == "linux" and platform.libc_ver()[0] != "glibc"
    if name not in PLATFORMS or is_musl or sys.maxsize < 2**32:
        found = (
            name + (" without glibc" if is_musl else "") + f", {sys.maxsize.bit_length() + 1} bits"
        )
        raise SystemExit(
            f"streamssl: the crop kernel has no build for this Python ({found}); there is one for "
            f"{', '.join(PLATFORMS)} with 64 bits, and glibc on Linux; use a Python of that kind"
        )
    return name


def find_compiler() -> Path:
    """Return the file of the compiler. Raises SystemExit with a sentence."""
    for entry in sys.path:
        if (path := Path(entry, "ziglang", "zig")).is_file():
            return path
    raise SystemExit(
        "streamssl: the crop kernel was not compiled: this Python has no package ziglang; run "
        "`make setup`, or install the version that pyproject.toml names under [build-system]"
    )


def _replace(to: Path, library: str) -> None:
    """Copy the library to `to`. A process that runs keeps the one that it has loaded."""
    new = to.with_name(f"{os.getpid()}.{to.name}")
    try:
        shutil.copyfile(library, new)
        new.replace(to)
    finally:
        new.unlink(missing_ok=True)


def _write(action: Callable[[], None], to: Path) -> None:
    """Write by `action`. Raises SystemExit with a sentence."""
    try:
        action()
    except OSError as error:
        raise SystemExit(
            f"streamssl: the crop kernel cannot be written to {to} ({error}); make room, or run "
            "this as a user who may write there"
        ) from error


def _run(commands: Sequence[tuple[str, ...]], folder: str) -> None:
    """Run the commands beside each other, with nothing of this environment."""
    variables = {"HOME": folder, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    running = [subprocess.Popen(command, cwd=SOURCES, env=variables) for command in commands]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise SystemExit(
            "streamssl: the crop kernel was not compiled, for the reason that the compiler gives "
            "above; if it names no fault in the sources, see that the folder of temporary files, "
            f"{tempfile.gettempdir()}, has 200 MB of room, or set TMPDIR to another"
        )


if __name__ == "__main__":
    file, target_platform, *_ = (*sys.argv[1:], None, None)
    build_library(Path(file or SOURCES / LIBRARY), target_platform)
