"""Metrics: all that a run says of itself, in one place: counted here, told by others, served.

Whoever trains or reads in this process counts into it; on a cluster the driver hands it what
Control heard of all others. It outlives them, so totals do.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cluster.monitoring.exposition import metrics_page, registry_of
from cluster.monitoring.history import History
from cluster.monitoring.http_server import Answer
from cluster.monitoring.metric_values import Values, flat
from cluster.monitoring.node_costs import Bill
from cluster.monitoring.run_state import Ended, RunInfo, Section, charted, state_of, to_json
from cluster.protocol.driver_protocol import Told
from cluster.protocol.metric import Key, Readings
from cluster.protocol.run_status import Status
from shards.records import ChunkCrops, Reject

Onlooker = Callable[[int, tuple[int, int, int] | None, Sequence[Reject]], None]
"""Called with a step, the id of one of its samples (shard row, offset, epoch), and its rejects."""


class Metrics:
    """The readings of one run.

    `run` says what it is, as soon as that is known. `sections` are more parts of `/state`, by name.
    `onlooker` is told what was seen in every step.
    `probes` are asked once a second, on a thread of its own, for gauges, and for counters since
    each began. `bill`: what nodes cost, if somebody said so.
    """

    def __init__(self) -> None:
        self.values = Values()
        self.registry = registry_of(self.values)
        self.history = History()
        self.run: RunInfo | None = None
        self.ended: Ended | None = None
        self.sections: dict[str, Section] = {}
        self.onlooker: Onlooker | None = None
        self.probes: list[Callable[[], Readings]] = []
        self.bill: Bill | None = None
        self._told: set[Key] = set()
        self._status: tuple[float, Status] | None = None

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
        """Count one training step. `readings` are gauges, loss and rate among them."""
        values = self.values
        values.count(("samples", "trained"), num_samples)
        for reject in rejects:
            values.count(("rejects", reject.reason), 1)
        values.count(("data_wait_seconds",), data_wait_seconds)
        values.observe("step_seconds", step_seconds)
        for phase, seconds in {**phase_seconds, "input_wait": data_wait_seconds}.items():
            values.count(("step_phase_seconds", phase), seconds)
        values.set({("train_step",): step, **readings})
        if self.onlooker is not None:
            self.onlooker(step, sample, rejects)

    @property
    def status(self) -> Status | None:
        """As Control told it last; None without a Control, or when the run has ended."""
        return None if self._status is None or self.ended else self._status[1]

    def mean_step_seconds(self) -> float | None:
        """Of all steps so far, the waits for batches not included."""
        _, histograms = self.values.snapshot()
        steps = histograms["step_seconds"]
        return steps.total / steps.counts[-1] if steps.counts[-1] else None

    def health(self, readings: Collection[str], crossed: Collection[str]) -> None:
        """These readings were looked at; some are where only collapsed encoders have them."""
        self.values.set({("collapsing", name): float(name in crossed) for name in readings})

    def heard(self, told: Told) -> None:
        """Take over what Control heard of all others, and how the run stands by it."""
        for counted in told.counted:
            self.values.take(counted)
        self.values.set(told.gauges)
        self.values.remove(self._told - told.gauges.keys())
        self._told = set(told.gauges)
        self._status = (time.time(), told.status)
        if self.bill is not None:
            self.values.take(self.bill.charge([node.labels for node in told.status.nodes]))

    def tick(self) -> None:
        """Once a second: what probes say, and a point of the history."""
        for number, probe in enumerate(self.probes):
            self.values.take_all(f"probe {number}", probe())
        self.history.add(charted(self._flat()))

    def metrics_page(self, _: Mapping[str, str]) -> Answer:
        """`/metrics`."""
        return metrics_page(self.registry)

    def state_page(self, query: Mapping[str, str]) -> Answer:
        """`/state`, see `cluster.monitoring.run_state`."""
        try:
            since = float(query.get("since", "0"))
        except ValueError:
            return Answer(b"since must be seconds since 1970\n", status=400)
        return Answer(to_json(self.state(since, self.sections)), "application/json")

    def state(
        self, since: float = 0.0, sections: Mapping[str, Section] | None = None
    ) -> dict[str, Any]:
        """What `/state` says, with these sections."""
        return state_of(
            self.run,
            self._flat(),
            self.history,
            now=time.time(),
            status=self._status,
            ended=self.ended,
            sections=sections,
            since=since,
        )

    def _flat(self) -> dict[str, float]:
        return flat(*self.values.snapshot())
