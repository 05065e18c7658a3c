"""Commands of setuptools: every installation, editable ones too, compiles the crop kernel.

setuptools reads this file alone, before the project is installed, so it imports nothing of it.
"""

import platform
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

_FOLDER = Path("shards", "crops", "kernel")
_LIBRARY = "libcrops.so"


class BuildKernel(Command):
    """The step `build_kernel` of a build; an editable one puts the library beside this file."""

    description = "compile the crop kernel"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        self.spawn([sys.executable, str(_FOLDER / "compile.py"), self._target()])

    def get_source_files(self) -> list[str]:
        return sorted(str(path) for pattern in ("*.c", "*.h") for path in _FOLDER.glob(pattern))

    def get_outputs(self) -> list[str]:
        return [self._target()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def _target(self) -> str:
        folder = _FOLDER if self.editable_mode else Path(self.build_lib or "") / _FOLDER
        return str(folder.absolute() / _LIBRARY)


class Build(build):
    """A build with the kernel."""

    sub_commands = [*build.sub_commands, ("build_kernel", None)]  # noqa: RUF012


class BuildWheel(bdist_wheel):
    """A wheel for every Python on machines of this kind."""

    def finalize_options(self) -> None:
        # Otherwise the packages would lie in a folder of their own, beside the root of the wheel.
        self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        kinds = {
            "linux": "manylinux2014_{0}.manylinux_2_17_{0}",
            "darwin": "macosx_11_0_{0}",
        }
        return "py3", "none", kinds[sys.platform].format(platform.machine())
