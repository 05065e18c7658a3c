"""Tests with the marker `gpu`, all of them; on a CPU they are only collected."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]
# Some files cannot be imported here, or all of them.
_PARTIAL = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.NO_TESTS_COLLECTED)
_MARKER = re.compile(r"mark\.gpu\b")


class Outcomes:
    """Counts outcomes, as a plugin of pytest."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.failed: list[str] = []
        self.not_importable: dict[str, str] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            text = str(report.longrepr)
            missing = re.search(r"No module named '([^']+)'", text)
            reason = missing[1] if missing else text.strip().splitlines()[-1]
            self.not_importable[report.nodeid] = reason
            if not missing:
                self.failed.append(report.nodeid)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.count["collected"] = sum(item.get_closest_marker("gpu") is not None for item in items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.count[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid)


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return the numbers of tests by outcome. Raises AssertionError if one failed."""
    del data
    importlib.import_module("tests.conftest")  # without it no test can run
    outcomes = Outcomes()
    files = [path for path in sorted(_TESTS.rglob("test_*.py")) if _has_marked(path)]
    for path in list(files):
        if missing := _missing_for(path):
            outcomes.not_importable[path.name] = missing
            files.remove(path)
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    options.append("--assert=plain")  # plugins of pytest may be imported already
    if device == "cpu":
        options.append("--collect-only")
    code = pytest.main([*options, *map(str, files)], plugins=[outcomes])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, *_PARTIAL), code
    assert not outcomes.failed, ", ".join(outcomes.failed)
    return {**outcomes.count, "not_importable": outcomes.not_importable}


def _missing_for(path: Path) -> str:
    """Return the package that a `conftest.py` of this file misses: it would end all of pytest."""
    for folder in path.relative_to(_TESTS.parent).parents:
        if (_TESTS.parent / folder / "conftest.py").exists():
            try:
                importlib.import_module(".".join([*folder.parts, "conftest"]))
            except ModuleNotFoundError as error:
                return error.name or str(error)
    return ""


def _has_marked(path: Path) -> bool:
    return _MARKER.search(path.read_text()) is not None
