"""Control actor: the place of all decisions of a run. It sees headers and plans, and no crops.

The driver creates it on the head node, and replaces it after a death. A new Control learns
everything again from the reports that it receives. Its messages carry its term, so that no actor
obeys two of them.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from cluster.actors.node_watch import NodeWatch
from cluster.control.control_core import ControlCore
from cluster.control.control_spec import ControlSpec, ControlStart
from cluster.control.control_status import make_report, make_status
from cluster.monitoring.process_pages import ProcessPages
from cluster.protocol.actor_rpc import CONTROL
from cluster.protocol.broadcast_event import BroadcastEvent
from cluster.protocol.driver_protocol import DriverOrders, DriverReport, RunReport
from cluster.protocol.messages import (
    Directive,
    HeartbeatMessage,
    Plans,
    ReaderOrders,
    ReaderReport,
    StateRef,
)
from cluster.protocol.run_status import Status
from shards.metric import Readings
from shards.stop_signals import ignore_stop_signals

# Time that a call without news may take.
_WAIT_SECONDS = 1.0
# Time between two reports for people.
_REPORT_SECONDS = 1.0


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=10_000)
class Control:
    """Methods for readers and trainers (see `actor_rpc`) and for the driver (`driver_protocol`).

    All of them run in one event loop; `control_core` makes the decisions.
    """

    def __init__(self) -> None:
        ignore_stop_signals()  # the driver answers them
        self._began = asyncio.Event()
        self._reported_at = float("-inf")
        self._counters: Readings = {}  # as of the last report

    async def start(self, spec: ControlSpec, start: ControlStart) -> int:
        """Begin, and return the term. Raises ConfigError."""
        pages = ProcessPages(
            CONTROL, spec.debug_ports, lambda: self._counters, ray.util.get_node_ip_address()
        )
        if pages.address:
            start = replace(start, pages={**start.pages, "control": pages.address})
        self._changed = BroadcastEvent()
        nodes = NodeWatch()
        self._core = ControlCore(spec, start, nodes, self._changed.set)
        nodes.__enter__()  # until this process ends
        self._ticking = asyncio.create_task(self._tick_all())
        self._began.set()
        return self._core.term

    async def _ready(self) -> ControlCore:
        """Wait for `start`: actors of an earlier Control may call before it."""
        await self._began.wait()
        return self._core

    async def exchange(self, report: ReaderReport) -> ReaderOrders:
        """Take the report of a reader, and return its orders."""
        return (await self._ready()).exchange(report)

    async def beat(self, beat: HeartbeatMessage) -> Directive:
        """Take the heartbeat of a trainer, and return its directive."""
        return (await self._ready()).beat(beat)

    async def plans(self, member: str, first: int, count: int) -> Plans:
        """Return plans from step `first` on, as soon as there is one."""
        core = await self._ready()
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            found = core.plans(member, first, count)
            if found.plans or time.monotonic() >= deadline:
                return found
            await self._changed.wait(deadline - time.monotonic())

    async def missing(self, member: str, task: int, reader: str) -> None:
        """Note that a reader did not give the crops of a task that it should hold."""
        (await self._ready()).missing(member, task, reader)

    async def state(self) -> StateRef:
        """Return the newest safe state."""
        return (await self._ready()).state

    async def saved(self, member: str, step: int, refs: Sequence[Any]) -> None:
        """Take a state that a trainer put into the object store."""
        (await self._ready()).keep(StateRef(step, tuple(refs), giver=member))

    async def report(self, report: DriverReport) -> None:
        """Take the report of the driver without an answer."""
        (await self._ready()).take(report)

    async def orders(self, report: DriverReport) -> DriverOrders:
        """Take the report of the driver, and return orders: at once if there is any news."""
        core = await self._ready()
        core.take(report)
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            orders = core.orders(report)
            if orders.is_news(report) or time.monotonic() >= deadline:
                return replace(orders, report=self._run_report())
            await self._changed.wait(deadline - time.monotonic())

    def _run_report(self) -> RunReport | None:
        """Return a report, unless there was one within the last second."""
        now = time.monotonic()
        if now - self._reported_at < _REPORT_SECONDS:
            return None
        self._reported_at = now
        report = make_report(self._core)
        self._counters = report.status.readings
        return report

    async def status(self) -> Status:
        """Return the status of the run."""
        return make_status(await self._ready())

    async def _tick_all(self) -> None:
        """Check for silent actors and do what is due, until this Control is killed."""
        while self._core.error is None:
            try:
                self._core.tick()
            except Exception as error:  # the run must not continue without supervision
                self._core.error = error
            await asyncio.sleep(self._core.spec.config.tick_seconds)
