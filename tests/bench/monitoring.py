"""Cost of monitoring: `python -m tests.bench.monitoring`.

First, the CPU of Control and the driver for the reports of many simulated readers, per second of a
run, and the time of a scrape. Then steps of a real recipe, in pairs of blocks with and without
monitoring.
"""

import functools
import pickle
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import tyro

from cluster.actors.reader_totals import ReaderTotals
from cluster.control.control_status import make_report
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.protocol.driver_protocol import ActorEvent
from cluster.protocol.learner import StopVote
from cluster.protocol.messages import ReaderReport
from streamssl.distributed.gradients import gradient_norm
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.monitoring.exported_readings import exported
from streamssl.recipes import RECIPES
from streamssl.training.learner import PretrainLearner
from streamssl.training.step_phases import StepPhases
from tests.cluster.monitoring.counted import count_step
from tests.cluster.monitoring.made_core import made_core
from tests.tinyrun import made_batches

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`readers` are simulated; `steps` run in blocks of `block`, half of them with monitoring."""

    readers: int = 200
    steps: int = 96
    block: int = 3
    batch: int = 32
    recipe: str = "swav-small"


def report(number: int, second: int) -> ReaderReport:
    """Return the report of a reader after some seconds of work."""
    counts: dict[tuple[str, ...], float] = {
        (name, *labels): float(second * value) for value, (name, *labels) in enumerate(_COUNTED, 1)
    }
    return ReaderReport(
        reader=f"reader-1.{number}", term=1, busy_seconds=0.9 * second, counts=counts,
        memory_bytes=1 << 29, held_bytes=1 << 27,
    )  # fmt: skip


def silent(found: ReaderReport) -> ReaderReport:
    """Return the report without the fields for /metrics."""
    return replace(found, counts={}, memory_bytes=0)


_COUNTED = (
    ("samples", "read"), ("samples", "unselected"), ("samples", "cropped"), ("crop_bytes",),
    ("taken_bytes",), ("reader_busy_seconds", "read"), ("reader_busy_seconds", "crop"),
    ("reader_blocked_seconds", "lease"), ("reader_blocked_seconds", "bucket"),
    ("bucket_bytes", "b"), ("bucket_requests", "b"), ("bucket_request_seconds", "b"),
    *(("bucket_errors", "b", kind) for kind in ("reset", "timeout", "short", "wrong_range",
      "throttled", "server", "other", "gone", "refused", "changed", "bad_request")),
    ("cache_ranges", "hit"), ("cache_ranges", "miss"),
)  # fmt: skip


def seconds_of(work: Callable[[], object], times: int = 5) -> float:
    """Return the CPU seconds of this thread, the minimum of several runs."""
    found = []
    for _ in range(times):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def fleet(options: Options) -> dict[str, float]:
    """Measure Control and the driver for one second of a run, in ms of one core."""
    metrics = MetricsHub(CATALOGUE)
    with made_core() as core:
        core.totals = ReaderTotals()
        for number in range(options.readers):
            event = ActorEvent(
                number=number + 1, name=f"reader-1.{number}", role="reader", kind="started"
            )
            core.take_event(event, 0.0)
        second = 0

        def reports(counting: bool = True) -> None:
            nonlocal second
            second += 1
            for number in range(options.readers):
                found = report(number, second)
                core.totals.add(pickle.loads(pickle.dumps(found if counting else silent(found))))

        # Readers send counters once per second; the rest of a report exists without metrics, too.
        added = max(0.0, seconds_of(reports) - seconds_of(lambda: reports(False)))
        sent: list[Any] = []

        def send() -> None:
            reports()
            sent.append(pickle.dumps(make_report(core)))

        sending = max(0.0, seconds_of(send) - seconds_of(reports))
        receiving = seconds_of(lambda: metrics.take_report(pickle.loads(sent.pop())))
    count_step(metrics, 1)
    ticking = seconds_of(metrics.tick)
    with MetricsServer(metrics) as server:
        pages = {}
        for page in ("/metrics", "/state"):
            url = server.url.replace("/metrics", page)
            began, body = time.perf_counter(), b""
            for _ in range(20):
                with urllib.request.urlopen(url) as answer:
                    body = answer.read()
            pages[page] = ((time.perf_counter() - began) / 20, len(body))
    return {
        "Control, reports, ms": 1e3 * added,
        "Control, sending, ms": 1e3 * sending,
        "driver, receiving, ms": 1e3 * receiving,
        "driver, ticking, ms": 1e3 * ticking,
        "share of a core, %": 1e2 * (added + sending + receiving + ticking),
        "scrape, ms": 1e3 * pages["/metrics"][0],
        "scrape, kB": pages["/metrics"][1] / 1e3,
        "state, ms": 1e3 * pages["/state"][0],
        "series": len(metrics.values.by_series()),
    }


class NoPhases:
    """Step phases without measurements."""

    phase = staticmethod(lambda _: nullcontext())
    counting = staticmethod(nullcontext)
    mark = staticmethod(lambda: None)
    readings = staticmethod(lambda _: {})
    take = staticmethod(dict)


@contextmanager
def scraped(metrics: MetricsHub) -> Iterator[None]:
    """Read both pages every second."""
    closed = threading.Event()
    with MetricsServer(metrics) as server:

        def scrape() -> None:
            while not closed.wait(1.0):
                for page in ("/metrics", "/state"):
                    urllib.request.urlopen(server.url.replace("/metrics", page)).read()

        thread = threading.Thread(target=scrape)
        thread.start()
        yield
        closed.set()
        thread.join()


def steps(options: Options) -> dict[str, float]:
    """Measure steps with and without monitoring, in alternating blocks."""
    torch.set_num_threads(1)
    config = RECIPES[options.recipe]()
    config = replace(config, stream=replace(config.stream, batch_size=options.batch))
    learner, no_phases = PretrainLearner(config, CPU), NoPhases()
    metrics, phases = MetricsHub(CATALOGUE), StepPhases(CPU)
    [batch] = made_batches(config, 1)

    def train(monitored: bool) -> float:
        began = time.perf_counter()
        for _ in range(options.block):
            asked = time.perf_counter()
            learner.phases = phases if monitored else no_phases
            report, _ = learner.train_step(batch, StopVote.CONTINUE)
            if monitored:
                metrics.step_trained(
                    step=report.step,
                    num_samples=len(batch),
                    data_wait_seconds=0.0,
                    rejects=(),
                    step_seconds=time.perf_counter() - asked,
                    phase_seconds=report.phase_seconds,
                    readings=exported(asdict(report)),
                )
        return (time.perf_counter() - began) / options.block

    def with_all() -> float:
        with scraped(metrics):
            return train(True)

    def without() -> float:
        return train(False)

    with_all(), without()
    pairs = []
    for number in range(options.steps // (2 * options.block)):
        order = (with_all, without) if number % 2 else (without, with_all)
        found = {one: one() for one in order}
        pairs.append((found[with_all], found[without]))
    norm = functools.partial(gradient_norm, learner.train_state.optimizer)
    shares = sorted(monitored / alone - 1 for monitored, alone in pairs)
    return {
        "step without, ms": 1e3 * statistics.median(alone for _, alone in pairs),
        "step with, ms": 1e3 * statistics.median(monitored for monitored, _ in pairs),
        "more, median of pairs, %": 1e2 * statistics.median(shares),
        "more, quartiles, %": 1e2 * shares[len(shares) // 4],
        "to, %": 1e2 * shares[-1 - len(shares) // 4],
        "gradient norm alone, ms": 1e3 * seconds_of(norm),
    }


def main() -> None:
    options = tyro.cli(Options)
    for name, value in {**fleet(options), **steps(options)}.items():
        print(f"{name:<28} {value:10.3f}")


if __name__ == "__main__":
    main()
