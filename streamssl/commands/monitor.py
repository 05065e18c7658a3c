"""`streamssl monitor`: a Prometheus that scrapes runs, with the rules and alerts of the project."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from cluster.monitoring.prometheus_server import open_prometheus, update_targets, write_targets
from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse
from streamssl.runs.file_names import METRICS_ADDRESS


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """Start the Prometheus that is on the PATH, with our rules, on the loopback address.

    Runs may begin and end meanwhile: those that live are scraped every two seconds.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders of this machine, or addresses such as http://127.0.0.1:9464."""
    out: Path | None = None
    """Folder for the data of Prometheus; by default a folder that is removed at the end."""
    port: int = 9090
    """Port of Prometheus on the loopback address."""


def parse_monitor(arguments: list[str]) -> Monitor:
    """Parse and check the arguments. Raises ConfigError."""
    parsed = parse(Monitor, "streamssl monitor", arguments)
    if not parsed.runs:
        raise ConfigError(
            "monitor needs at least one run: give run folders, for example `streamssl monitor "
            "runs/a runs/b`, or the addresses that they print"
        )
    if not 1 <= parsed.port <= 65_535:
        raise ConfigError(f"port={parsed.port}; it must be from 1 to 65535")
    return parsed


def monitor(parsed: Monitor, console: Console, stop: Callable[[], bool]) -> None:
    """Run Prometheus until `stop()`. Raises ConfigError if there is none or it does not start."""
    with ExitStack() as stack:
        folder = parsed.out
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamssl-")))
        folder.mkdir(parents=True, exist_ok=True)
        targets = folder.resolve() / "targets.json"
        write_targets(targets, [])
        process = stack.enter_context(open_prometheus(folder.resolve(), parsed.port, targets))
        console.print(
            f"Prometheus at http://127.0.0.1:{parsed.port}, its data in {folder}; Ctrl-C ends it",
            highlight=False,
        )
        update_targets(process, targets, lambda: metrics_addresses(parsed.runs), stop)


def metrics_addresses(runs: tuple[str, ...]) -> list[str]:
    """Return the addresses at which the live ones of these runs serve their metrics."""
    found = []
    for run in runs:
        if "://" in run:
            found.append(run.rstrip("/").removesuffix("/metrics"))
            continue
        with suppress(OSError, ValueError):
            found.append((Path(run) / METRICS_ADDRESS).read_text().strip())
    return found
