"""The real rules in a real Prometheus, with seconds for minutes, and its alerts of runs."""

import functools
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.monitoring.prometheus_server import (
    RULES,
    PrometheusConfig,
    open_prometheus,
    update_targets,
    write_targets,
)
from streamssl.commands.monitor import metrics_addresses
from tests.drills.processes import Run
from tests.prometheus import Prometheus, free_port

TIMEOUT_SECONDS = 120.0
_WINDOWS = {"1m": "8s", "2m": "10s", "5m": "12s", "10m": "60s", "30m": "90s", "1h": "1h"}
_FOR = {"1m": "3s", "2m": "5s", "5m": "12s", "10m": "25s", "15m": "25s"}


@contextmanager
def quick_prometheus(
    folder: Path, *runs: Path, ray_targets: Path | None = None
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes these runs, even later ones, and the targets of Ray."""
    folder.mkdir()
    rules = re.sub(r"\bfor: (\w+)", lambda found: f"for: {_FOR[found[1]]}", RULES.read_text())
    rules = re.sub(r"\[(\d+[mh])\]", lambda found: f"[{_WINDOWS[found[1]]}]", rules)
    quick, targets, port = folder / "quick.rules.yml", folder / "targets.json", free_port()
    quick.write_text(rules)
    write_targets(targets, [])
    closed = threading.Event()
    ray_targets = ray_targets or folder / "none.json"
    config = PrometheusConfig(rules=quick, scrape="1s", ray_targets=ray_targets)
    with open_prometheus(folder, port, targets, config) as process:
        addresses = functools.partial(metrics_addresses, tuple(map(str, runs)))
        updates = threading.Thread(
            target=update_targets, args=(process, targets, addresses, closed.is_set)
        )
        updates.start()
        try:
            yield Prometheus(port)
        finally:
            closed.set()
            updates.join()


def firing(prometheus: Prometheus, run: str) -> set[str]:
    """Return the alerts of a run that fire now."""
    found = prometheus.query(f'ALERTS{{alertstate="firing",run="{run}"}}')
    return {one["metric"]["alertname"] for one in found}


def fired(prometheus: Prometheus, run: str, since: float) -> set[str]:
    """Return the alerts of a run that fired since then, even for a second."""
    seconds = max(1, int(time.time() - since))
    query = f'max_over_time(ALERTS{{alertstate="firing",run="{run}"}}[{seconds}s])'
    return {one["metric"]["alertname"] for one in prometheus.query(query)}


def settled(prometheus: Prometheus, run: Run) -> float:
    """Wait until no alert fires for the run; return when that was.

    A start takes real seconds, so it looks like a start of many minutes.
    """
    seen = f'up{{run="{run.out.name}"}} == 1'
    run.wait_for(lambda: bool(prometheus.query(seen)), "first scrape")
    run.wait_for(lambda: not firing(prometheus, run.out.name), "silence")
    return time.time() + 1


def wait_for_alerts(
    prometheus: Prometheus, names: set[str], run: Run, *others: Run, since: float
) -> set[str]:
    """Wait until these alerts fire for the run; return all that fire then.

    No run may end meanwhile. `since` is the time of the fault; the delay is printed.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while missing := names - (found := firing(prometheus, run.out.name)):
        for one in (run, *others):
            assert one.process.poll() is None, one.text
        assert time.monotonic() < deadline, f"no {missing}:\n{run.text}"
        time.sleep(0.3)
    print(f"{', '.join(sorted(names))} after {time.time() - since:.0f} s")
    return found
