"""Commands of setuptools: every installation, editable ones too, compiles the crop kernel.

setuptools reads this module before the project is installed, so it imports nothing of it.
"""

import importlib.util
import platform
from pathlib import Path

from setuptools import Command
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

_PLACE = Path("shards", "crops", "kernel")
_spec = importlib.util.spec_from_file_location("compile", Path(__file__).with_name("compile.py"))
assert _spec is not None and _spec.loader is not None
compiling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compiling)


class BuildKernel(Command):
    """The step `build_kernel` of a build: the library goes beside this file."""

    description = "compile the crop kernel"
    user_options = []  # noqa: RUF012

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        compiling.build_library(self._target())

    def get_source_files(self) -> list[str]:
        return [
            str(_PLACE / path.name)
            for path in compiling.SOURCES.iterdir()
            if path.suffix in (".c", ".h")
        ]

    def get_outputs(self) -> list[str]:
        return [str(self._target())]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def _target(self) -> Path:
        root = Path() if self.editable_mode else Path(self.build_lib or "")
        return (root / _PLACE / compiling.LIBRARY).absolute()


class Build(build):
    """A build with the kernel."""

    sub_commands = [*build.sub_commands, ("build_kernel", None)]  # noqa: RUF012


class BuildWheel(bdist_wheel):
    """A wheel for any Python on machines of this kind."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        machine = platform.machine()
        return "py3", "none", f"manylinux_2_17_{machine}.manylinux2014_{machine}"
