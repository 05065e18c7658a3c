"""The real rules in a real Prometheus, with seconds for minutes, and what it says of runs."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.monitoring import prometheus_server as monitor
from streamssl.commands.monitor import addresses
from tests.drills.processes import Run
from tests.prometheus import Prometheus, free_port

TIMEOUT_SECONDS = 120.0
_WINDOWS = {"1m": "8s", "2m": "10s", "5m": "12s", "10m": "60s", "30m": "90s", "1h": "1h"}
_FOR = {"1m": "3s", "2m": "5s", "5m": "12s", "10m": "25s", "15m": "25s"}


@contextmanager
def quick_prometheus(
    folder: Path, *runs: Path, ray_targets: Path | None = None
) -> Iterator[Prometheus]:
    """One that follows these runs, which may begin later, and what `ray_targets` lists."""
    folder.mkdir()
    rules = re.sub(
        r"\bfor: (\w+)", lambda found: f"for: {_FOR[found[1]]}", monitor.RULES.read_text()
    )
    rules = re.sub(r"\[(\d+[mh])\]", lambda found: f"[{_WINDOWS[found[1]]}]", rules)
    quick, targets, port = folder / "quick.rules.yml", folder / "targets.json", free_port()
    quick.write_text(rules)
    monitor.write_targets(targets, [])
    closed = threading.Event()
    ray_targets = ray_targets or folder / "none.json"
    watching = monitor.Watching(rules=quick, scrape="1s", ray_targets=ray_targets)
    with monitor.prometheus(folder, port, targets, watching) as process:
        follow = threading.Thread(
            target=monitor.follow,
            args=(process, targets, lambda: addresses(tuple(map(str, runs))), closed.is_set),
        )
        follow.start()
        try:
            yield Prometheus(port)
        finally:
            closed.set()
            follow.join()


def firing(prometheus: Prometheus, run: str) -> set[str]:
    """The alerts of a run that fire at this moment."""
    found = prometheus.query(f'ALERTS{{alertstate="firing",run="{run}"}}')
    return {one["metric"]["alertname"] for one in found}


def fired(prometheus: Prometheus, run: str, since: float) -> set[str]:
    """The alerts of a run that fired since then, if only for a second."""
    seconds = max(1, int(time.time() - since))
    query = f'max_over_time(ALERTS{{alertstate="firing",run="{run}"}}[{seconds}s])'
    return {one["metric"]["alertname"] for one in prometheus.query(query)}


def settled(prometheus: Prometheus, run: Run) -> float:
    """Wait until nothing fires for the run; when that was. A start takes seconds as it is, and so
    may look like one of many minutes."""
    seen = f'up{{run="{run.out.name}"}} == 1'
    run.wait_for(lambda: bool(prometheus.query(seen)), "first scrape")
    run.wait_for(lambda: not firing(prometheus, run.out.name), "silence")
    return time.time() + 1


def wait_for_alerts(
    prometheus: Prometheus, names: set[str], run: Run, *others: Run, since: float
) -> set[str]:
    """Until all of them fire for the run; all that fire then. No run may end meanwhile.

    `since` is when that was done which they are for: how long they took is printed.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while missing := names - (found := firing(prometheus, run.out.name)):
        for one in (run, *others):
            assert one.process.poll() is None, one.text
        assert time.monotonic() < deadline, f"no {missing}:\n{run.text}"
        time.sleep(0.3)
    print(f"{', '.join(sorted(names))} after {time.time() - since:.0f} s")
    return found
