"""Metrics hub: all numbers of one run in one place, counted here or reported by Control.

The trainer and the readers of this process count into the hub. On a cluster the driver passes it
the reports of Control. The hub outlives all actors, and so do its totals.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from cluster.monitoring.exposition import metrics_response, run_registry
from cluster.monitoring.history import History
from cluster.monitoring.http_server import HttpResponse
from cluster.monitoring.metric_catalogue import MetricCatalogue
from cluster.monitoring.metric_values import MetricTotals, MetricValues, charted_series
from cluster.monitoring.run_state import RunInfo, RunOutcome, StateSection, state_of, to_json
from cluster.monitoring.steady_clock import steady_time
from cluster.protocol.process_counts import ProcessCounts
from cluster.protocol.run_status import Status
from shards.metric import Key, Readings
from shards.records import ChunkCrops, Reject

_log = logging.getLogger(__name__)

StepObserver = Callable[[int, tuple[int, int, int] | None, Sequence[Reject]], None]
"""Called with a step, the id of one of its samples (shard row, offset, epoch), and its rejects."""


class ControlReport(Protocol):
    """Report of Control: counters of the processes that changed, all gauges, and the status."""

    @property
    def counted(self) -> tuple[ProcessCounts, ...]: ...

    @property
    def gauges(self) -> Readings: ...

    @property
    def status(self) -> Status: ...


class MetricsHub:
    """Numbers of one run.

    `run` is set as soon as it is known. `sections` are further parts of `/state`, by name.
    `step_observer` is called after every step. `probes` are called once a second from one thread;
    they return gauges, and counters since the probe was created. `status_probes` are called with
    each status of Control and return counters. `keep_totals` is called before /metrics is answered,
    so that no total there falls when the run is started again.
    """

    def __init__(self, catalogue: MetricCatalogue) -> None:
        self.catalogue = catalogue
        self.values = MetricValues(catalogue)
        self.registry = run_registry(self.values)
        self.history = History()
        self.run: RunInfo | None = None
        self.outcome: RunOutcome | None = None
        self.sections: dict[str, StateSection] = {}
        self.step_observer: StepObserver | None = None
        self.probes: list[Callable[[], Readings]] = []
        self.status_probes: list[Callable[[Status], ProcessCounts]] = []
        self.keep_totals: Callable[[], None] = lambda: None
        self._before: Mapping[str, float] = {}
        self._is_failure_told = False
        self._reported: set[Key] = set()
        self._status: tuple[float, Status] | None = None

    def go_on_from(self, totals: MetricTotals) -> None:
        """Count on from the totals of earlier starts of the run."""
        self.values.add(totals)
        self._before = {name: value for name, value in self.values.by_series().items() if value}
        self.add_to_history()

    def chunk_cropped(self, result: ChunkCrops) -> None:
        """Count one chunk that a reader of this process finished. Called from any thread."""
        count = self.values.count
        count(("samples", "read"), len(result.offsets) + result.num_unselected)
        count(("samples", "unselected"), result.num_unselected)
        count(("samples", "cropped"), int(result.kept.sum()))
        count(("reader_busy_seconds", "read"), result.read_seconds)
        count(("reader_busy_seconds", "crop"), result.crop_seconds)
        count(("crop_bytes",), result.num_bytes)

    def step_trained(
        self,
        *,
        step: int,
        num_samples: int,
        step_seconds: float,
        data_wait_seconds: float,
        rejects: Sequence[Reject],
        phase_seconds: Mapping[str, float],
        readings: Readings,
        sample: tuple[int, int, int] | None = None,
    ) -> None:
        """Count one training step. `readings` are gauges of the learner."""
        values = self.values
        values.count(("samples", "trained"), num_samples)
        for reject in rejects:
            values.count(("rejects", reject.reason), 1)
        values.count(("data_wait_seconds",), data_wait_seconds)
        values.observe("step_seconds", step_seconds)
        for phase, seconds in {**phase_seconds, "input_wait": data_wait_seconds}.items():
            values.count(("step_phase_seconds", phase), seconds)
        values.set({("train_step",): step, **readings})
        if self.step_observer is not None:
            self.step_observer(step, sample, rejects)

    @property
    def status(self) -> Status | None:
        """The newest status of Control; None without a Control, or when the run has ended."""
        return None if self._status is None or self.outcome else self._status[1]

    def mean_step_seconds(self) -> float | None:
        """Return the mean over the steps of this start, without the waits for batches."""
        steps = self.values.totals().histograms["step_seconds"]
        name = self.catalogue["step_seconds"].exposed
        number = steps.counts[-1] - self._before.get(f"{name}_count", 0.0)
        return (steps.total - self._before.get(f"{name}_sum", 0.0)) / number if number else None

    def take_report(self, report: ControlReport) -> None:
        """Take the counters, gauges and status that Control reports."""
        for counted in report.counted:
            self.values.take(counted)
        self.values.set(report.gauges)
        self.values.remove(self._reported - report.gauges.keys())
        self._reported = set(report.gauges)
        self._status = (steady_time(), report.status)
        for probe in self.status_probes:
            self.values.take(probe(report.status))

    def tick(self) -> None:
        """Read the probes and add a point to the history; called once a second.

        What fails is told once, and costs only itself: a run does not fail because of its page.
        """
        works: list[Callable[[], None]] = [
            *(partial(self._read_probe, *one) for one in enumerate(self.probes)),
            self.add_to_history,
            self.keep_totals,
        ]
        for work in works:
            try:
                work()
            except Exception as error:
                if not self._is_failure_told:
                    _log.warning("a reading of /metrics failed, others go on: %s", error)
                self._is_failure_told = True

    def _read_probe(self, number: int, probe: Callable[[], Readings]) -> None:
        self.values.take_all(f"probe {number}", probe())

    def add_to_history(self, now: float | None = None) -> None:
        """Add the charted values to the history."""
        self.history.add(charted_series(self.catalogue, self.values.by_series()), now)

    def metrics_page(self, _: Mapping[str, str]) -> HttpResponse:
        """Answer `/metrics`."""
        response = metrics_response(self.registry)
        self.keep_totals()
        return response

    def state_page(self, query: Mapping[str, str]) -> HttpResponse:
        """Answer `/state`, see `cluster.monitoring.run_state`."""
        try:
            since = float(query.get("since", "0"))
        except ValueError:
            return HttpResponse(b"since must be seconds since 1970\n", status=400)
        return HttpResponse(to_json(self.state(since, self.sections)), "application/json")

    def state(
        self, since: float = 0.0, sections: Mapping[str, StateSection] | None = None
    ) -> dict[str, Any]:
        """Return the object of `/state` with these sections."""
        return state_of(
            self.run,
            self.values.by_series(),
            self.history,
            now=steady_time(),
            status=self._status,
            outcome=self.outcome,
            sections=sections,
            before=self._before,
            since=since,
        )
