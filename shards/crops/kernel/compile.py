"""Compilation of the crop kernel into one library that holds every level of `lanes.h`.

The compiler is the one in the wheel `ziglang`. So no compiler has to be on the machine, and the same
sources give the same bytes everywhere. Imports nothing of the project: `build` reads it alone.
"""

import hashlib
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent
LIBRARY: Final = "libcrops.so"
# Values of -mcpu by the level of `lanes.h`; the first is what every CPU of this kind has.
_LEVELS: Final = {
    "x86_64": ("x86_64", "x86_64_v2", "x86_64_v3", "x86_64_v4"),
    "aarch64": ("generic",),
}
# Weights are computed in doubles: contracted or reordered operations would change their last bits.
_FLAGS: Final = (
    "-std=gnu11", "-O3", "-fPIC", "-fwrapv", "-ffp-contract=off", "-g0", "-Wall", "-Wextra", "-Werror",
)  # fmt: skip
# The oldest C library that Python wheels of manylinux_2_17 may meet.
_C_LIBRARY = "linux-gnu.2.17"


def source_digest(folder: Path = SOURCES) -> str:
    """Return 16 hex digits over the C sources in `folder`."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_library(to: Path, machine: str = platform.machine()) -> None:
    """Compile every level of the kernel for `machine` into one library."""
    if machine not in _LEVELS:
        known = " and ".join(_LEVELS)
        raise SystemExit(f"the crop kernel has no build for {machine}; it has them for {known}")
    compiler = (
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        *_FLAGS,
        "-target",
        f"{machine}-{_C_LIBRARY}",
    )
    define = f'-DSOURCE_DIGEST="{source_digest()}"'
    with tempfile.TemporaryDirectory() as scratch:
        caches = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        objects = []
        for level, cpu in enumerate(_LEVELS[machine], start=1):
            objects.append(f"{scratch}/views{level}.o")
            _run((*compiler, f"-mcpu={cpu}", "-c", "views.c", "-o", objects[-1]), caches)
        to.parent.mkdir(parents=True, exist_ok=True)
        _run((*compiler, define, "-shared", "-s", "kernel.c", *objects, "-o", str(to)), caches)


def _run(command: tuple[str, ...], variables: dict[str, str]) -> None:
    path = {"PATH": "/usr/bin:/bin", "HOME": variables["ZIG_LOCAL_CACHE_DIR"]}
    subprocess.run(command, cwd=SOURCES, env=path | variables, check=True)
