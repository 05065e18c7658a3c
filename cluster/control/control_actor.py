"""Control: the one actor that knows who does what. It sees headers and plans, and no crops.

It is made on the head by the driver, and made anew when it dies: all that it knows it learns again
from those who ask it, and whatever it says carries its term, so that nobody obeys two of them.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from cluster.actors.node_watch import NodeWatch
from cluster.control.control_core import Core
from cluster.control.control_readings import told_of
from cluster.control.control_spec import ControlSpec, ControlStart
from cluster.control.control_status import status_of
from cluster.control.run_place import RunPlace, write_place
from cluster.monitoring.process_pages import ProcessPages
from cluster.protocol.actor_rpc import CONTROL, StateRef
from cluster.protocol.broadcast_event import Bell
from cluster.protocol.driver_protocol import ControlNews, DriverReport, Told
from cluster.protocol.messages import Beat, Directive, Plans, ReaderOrders, ReaderReport
from cluster.protocol.metric import Readings
from cluster.protocol.run_status import Status

# How long an answer may wait for what was asked for, before it says that there is nothing.
_WAIT_SECONDS = 1.0
# How often what is of interest to people alone is put together and sent.
_TELL_SECONDS = 1.0


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=10_000)
class Control:
    """See `links` for what it answers to readers and trainers, `orders` for the driver.

    All of it runs in one event loop; what is decided, and how, is in `core`.
    """

    def __init__(self) -> None:
        self._began = asyncio.Event()
        self._told_at = float("-inf")
        self._counted: Readings = {}  # when it was last told

    async def start(self, spec: ControlSpec, start: ControlStart) -> int:
        """Begin, and give its term. Raises ConfigError."""
        pages = ProcessPages(CONTROL, spec.debug_ports, lambda: self._counted)
        if pages.address:
            start = replace(start, pages={**start.pages, "control": pages.address})
        self._bell = Bell()
        nodes = NodeWatch()
        self._core = Core(spec, start, nodes, self._bell.ring)
        nodes.__enter__()  # for as long as this process lives
        context = ray.get_runtime_context()
        write_place(spec.folder, RunPlace(context.gcs_address, context.namespace))
        self._ticking = asyncio.create_task(self._tick_on())
        self._began.set()
        return self._core.term

    async def _ready(self) -> Core:
        """Those of the Control before find this one by its name, maybe before it knows the run."""
        await self._began.wait()
        return self._core

    async def exchange(self, report: ReaderReport) -> ReaderOrders:
        """Leases for a reader, and what it may forget."""
        return (await self._ready()).exchange(report)

    async def beat(self, beat: Beat) -> Directive:
        """What a trainer is to do."""
        return (await self._ready()).beat(beat)

    async def plans(self, member: str, first: int, count: int) -> Plans:
        """Plans from step `first` on, as soon as there is one. Raises what ended the stream."""
        core = await self._ready()
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            found = core.plans(member, first, count)
            if found.plans or time.monotonic() >= deadline:
                return found
            await self._bell.wait(deadline - time.monotonic())

    async def missing(self, member: str, task: int, reader: str) -> None:
        """This reader did not give the crops of a task that it is said to hold."""
        (await self._ready()).missing(member, task, reader)

    async def state(self) -> StateRef:
        """The newest state that is safe."""
        return (await self._ready()).state

    async def saved(self, member: str, step: int, refs: Sequence[Any]) -> None:
        """A state that a trainer put into the object store."""
        (await self._ready()).keep(member, StateRef(step, tuple(refs)))

    async def tell(self, report: DriverReport) -> None:
        """What became of actors, and what is safe by now."""
        (await self._ready()).take(report)

    async def news(self, report: DriverReport) -> ControlNews:
        """What the driver has to do; at once if there is anything new, else after a while."""
        core = await self._ready()
        core.take(report)
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            news = core.news(report)
            if news.is_new(report) or time.monotonic() >= deadline:
                return replace(news, told=self._told())
            await self._bell.wait(deadline - time.monotonic())

    def _told(self) -> Told | None:
        """How the run stands, if that was not said a moment ago."""
        now = time.monotonic()
        if now - self._told_at < _TELL_SECONDS:
            return None
        self._told_at = now
        told = told_of(self._core)
        self._counted = told.status.readings
        return told

    async def status(self) -> Status:
        """How the run stands."""
        return status_of(await self._ready())

    async def _tick_on(self) -> None:
        """Look after those that say nothing, until this Control is killed."""
        while self._core.error is None:
            try:
                self._core.tick()
            except Exception as error:  # the run must not go on unattended
                self._core.error = error
            await asyncio.sleep(self._core.spec.config.tick_seconds)
