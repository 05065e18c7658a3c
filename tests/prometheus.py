"""A real Prometheus for tests, started by `streamssl monitor`, and its queries."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not on the PATH"
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on the PATH"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Prometheus:
    """Client of the Prometheus on this port."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1"

    def request(self, path: str, **query: str) -> Any:
        url = f"{self._base}/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return labels and values of all series of an instant query."""
        return self.request("query", query=expr)["result"]

    def value(self, expr: str) -> float | None:
        """Return the value of the only series, or None without a series."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def targets(self) -> list[dict[str, Any]]:
        return self.request("targets", state="active")["activeTargets"]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.request("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}


@contextmanager
def monitored(folder: Path, *runs: Path) -> Iterator[Prometheus]:
    """Run `streamssl monitor` of these runs, which may begin later."""
    port = free_port()
    command = [sys.executable, "-m", "streamssl.cli", "monitor", *map(str, runs)]
    command += ["--port", str(port), "--out", str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        found, deadline = Prometheus(port), time.monotonic() + 60
        while True:
            try:
                found.request("status/runtimeinfo")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(30)
