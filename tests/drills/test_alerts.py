"""Alerts fire for real faults of real runs: the rules as they are, with seconds for minutes.

The other alerts are made to fire in `tests/cluster/metrics/test_rules.py` alone.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import monitor
from streamssl.commands.monitor import addresses
from tests.drills.cluster_runs import endless
from tests.drills.processes import Run, started
from tests.drills.test_monitoring import of_kind
from tests.prometheus import Prometheus, free_port, needs_prometheus

pytestmark = [pytest.mark.slow, pytest.mark.ray, needs_prometheus]

PATIENCE = 90.0


@contextmanager
def quick_prometheus(folder: Path, *runs: Path) -> Iterator[Prometheus]:
    """One for which ten minutes are one, five are twelve seconds, and `for` is now."""
    folder.mkdir()
    rules = re.sub(r"\bfor: \w+", "for: 0s", monitor.RULES.read_text())
    for window, shorter in (("1m", "8s"), ("2m", "10s"), ("5m", "12s"), ("10m", "60s")):
        rules = rules.replace(f"[{window}]", f"[{shorter}]")
    rules = rules.replace("[30m]", "[60s]")
    quick, targets, port = folder / "quick.rules.yml", folder / "targets.json", free_port()
    quick.write_text(rules)
    monitor.write_targets(targets, [])
    closed = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "RULES", quick)
        patch.setattr(monitor, "_SCRAPE", "1s")
        with monitor.prometheus(folder, port, targets) as process:
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
    found = prometheus.query(f'ALERTS{{alertstate="firing",run="{run}"}}')
    return {one["metric"]["alertname"] for one in found}


def wait_for_alerts(prometheus: Prometheus, run: Run, *names: str) -> None:
    """Until they fire; and says how long that took."""
    began = time.monotonic()
    while missing := set(names) - firing(prometheus, run.out.name):
        assert run.process.poll() is None, run.text
        assert time.monotonic() - began < PATIENCE, f"no {missing}:\n{run.text}"
        time.sleep(0.3)
    print(f"{', '.join(names)} after {time.monotonic() - began:.1f} s")


def kill(run: Run, kind: str) -> None:
    """One of that kind, as soon as there is one."""
    run.wait_for(lambda: bool(of_kind(run, kind)), f"a {kind}")
    of_kind(run, kind)[0].kill()


def test_a_run_on_a_cluster_that_is_hurt_raises_its_alarms(
    shards_folder: Path, tmp_path: Path
) -> None:
    """A reader that is missing is told of, and a Control that dies again and again."""
    out = tmp_path / "hurt"
    options = ("--cluster", "local", "--readers", 2)
    with (
        quick_prometheus(tmp_path / "prometheus", out) as prometheus,
        started(endless(), shards_folder, out, *options) as run,
    ):
        run.wait_for_step(20)
        run.wait_for(lambda: bool(prometheus.query("up == 1")), "first scrape")
        kill(run, "Reader")
        wait_for_alerts(prometheus, run, "StreamsslActorsMissing")
        for _ in range(3):
            term = run.metric("control_term")
            kill(run, "Control")
            run.wait_for(lambda term=term: run.metric("control_term") > term, "the next Control")
        wait_for_alerts(prometheus, run, "StreamsslControlRestarts")
