"""Driver: creates the actors of a run, keeps its output, and replaces a dead Control.

The driver decides nothing. It owns the actors, so that none outlives the command; it creates a new
Control, with a higher term, when Control dies; and it passes steps and states to a `RunOutput`.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.actor_fleet import ActorFleet
from cluster.control.control_actor import Control
from cluster.control.control_spec import ControlSpec, ControlStart, mark_folder
from cluster.errors import ControlLost
from cluster.monitoring.process_pages import ProcessPages
from cluster.protocol.actor_rpc import CONTROL
from cluster.protocol.driver_protocol import ActorEvent, DriverOrders, DriverReport, RunReport
from cluster.protocol.learner import BuildLearner, LearnerState
from cluster.protocol.messages import StateRef
from cluster.protocol.step_log import Records
from cluster.protocol.step_report import StepReport
from cluster.ray_internals import HEAD_RESOURCE
from cluster.readers.reader_actor import Reader
from cluster.trainers.batch_feed import FeedConfig
from cluster.trainers.elastic_training import TrainerConfig
from cluster.trainers.trainer_actor import Trainer
from shards.crops.sample_cropper import CropJob
from shards.errors import StorageFailed
from shards.stream.journal import JournalEntry

_POLL_SECONDS = 0.2  # after which a wish to stop is seen
_SILENCE_SECONDS = 20.0  # without an answer, after which Control counts as dead
_NAME_SECONDS = 30.0  # that Ray may need to free the name of a dead Control
_MAX_DEATHS = 5  # of Control within `_HEALTHY_SECONDS`
_HEALTHY_SECONDS = 60.0


class RunOutput(Protocol):
    """Output of a run. The thread of `run_cluster` calls all methods except `save`."""

    def begin(self) -> None:
        """Create the folder of the run: the data has filled a batch."""

    def rewind(self, step: int) -> None:
        """Drop the steps after this one: they are trained again, and come again."""

    def record(self, report: StepReport) -> None:
        """Write a finished step. Steps come in order, each once."""

    def save(self, state: LearnerState) -> None:
        """Write a state, in a thread of its own while the training continues."""

    def take_report(self, report: RunReport) -> None:
        """Take the numbers and the status of all actors, about once a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """Specification of a run on a cluster.

    `job` is for readers, `build` makes a learner, `state` is the first state and `entries` are the
    journal at that moment. `trainer_options` are options of Ray for trainers, such as their cores.
    """

    control: ControlSpec
    job: CropJob
    build: BuildLearner
    trainer: TrainerConfig
    feed: FeedConfig
    state: LearnerState
    entries: tuple[JournalEntry, ...]
    trainer_options: Mapping[str, Any]


def run_cluster(spec: RunSpec, output: RunOutput, stop: Callable[[], bool]) -> None:
    """Train until the last step, or until `stop()` returns True. Needs a connection to Ray.

    Raises the error that ended the stream, the error of a learner, ConfigError, RestartLoop, and
    ControlLost.
    """
    job, build = ray.put(spec.job), ray.put(spec.build)
    config, ports = spec.control.config, spec.control.debug_ports

    def make_reader(name: str, options: Mapping[str, Any]) -> Any:
        return Reader.options(**options).remote(name, CONTROL, job, config.readers, ports)  # type: ignore[attr-defined]

    def make_trainer(name: str, options: Mapping[str, Any]) -> Any:
        more = {**spec.trainer_options, **options}
        arguments = (name, CONTROL, build, spec.trainer, spec.feed, ports)
        return Trainer.options(**more).remote(*arguments)  # type: ignore[attr-defined]

    fleet = ActorFleet({"reader": make_reader, "trainer": make_trainer}, spec.control.pools)
    # The driver's /sd and its own pages are for clients on its machine.
    with ProcessPages("driver", ports and replace(ports, on_nodes=False), dict) as pages:
        start = ControlStart(
            state=StateRef(spec.state.step, (ray.put(spec.state),), spec.state.cursor),
            begun=False,
            nonce=mark_folder(spec.control.folder),
            entries=spec.entries,
            pages={"driver": pages.address} if pages.address else {},
        )
        Driver(spec.control, start, fleet, output).run(stop)


class Driver:
    """One run, from the first actor to the last. `fleet` creates the actors."""

    def __init__(
        self, spec: ControlSpec, start: ControlStart, fleet: ActorFleet, output: RunOutput
    ) -> None:
        self._spec = ray.put(spec)  # for every new Control
        self._start, self._fleet, self._output = start, fleet, output
        self._begun = False
        self._recorded, self._history = start.state.step, 0
        self._state = start.state
        self._events: list[ActorEvent] = []
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[StateRef] | None = None
        self._saving_id = (-1, "")  # step and giver
        self._unsaved: tuple[int, str] | None = None
        self._deaths: list[float] = []
        self._control: Any = None
        self._term = 0
        self._stopping = False
        self._failed: StorageFailed | None = None

    def run(self, stop: Callable[[], bool]) -> None:
        """Run until every trainer has left; `stop()` is called several times a second."""
        try:
            self._create_control()
            while not self._handle_next(stop):
                pass
            self._finish_saving()
        finally:
            self._close()
        if self._failed is not None:
            raise self._failed

    def _handle_next(self, stop: Callable[[], bool]) -> bool:
        """Wait for an event, and handle it. Return True at the end of the run."""
        refs = [self._orders, *self._fleet.refs()]
        done, _ = ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        events = self._fleet.collect(done)
        self._events += events
        stops = not self._stopping and stop()
        self._stopping |= stops
        self._check_saving()
        if self._orders in done:
            return self._handle_orders()
        if events or stops:
            self._control.report.remote(self._report())
        if time.monotonic() - self._answered > _SILENCE_SECONDS:
            self._replace_control("it did not answer")
        return False

    def _handle_orders(self) -> bool:
        """Execute the orders of Control, and request more. Return True at the end of the run."""
        try:
            orders: DriverOrders = ray.get(self._orders)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._replace_control(type(error).__name__)
            return False
        self._answered = time.monotonic()
        self._events = [event for event in self._events if event.number > orders.last_event]
        self._write(orders)
        if orders.error is not None:
            raise orders.error
        if orders.finished and self._saving is None:
            return True
        self._events += self._fleet.kill(orders.kill)
        self._fleet.create(orders.create)
        if orders.state is None and self._saving is None:
            self._fleet.end_departed(orders.last_event)
        self._request_orders()
        return False

    def _write(self, orders: DriverOrders) -> None:
        """Pass steps, a new state and the report to the output."""
        if orders.data_ready and not self._begun:
            self._output.begin()
            self._begun = True
        self._record(orders.records)
        state = orders.state
        if state is not None and self._saving is None and state.step > self._state.step:
            self._saving_id = state.step, state.giver
            self._saving = self._saver.submit(self._save, state)
        if orders.report is not None:
            self._output.take_report(orders.report)

    def _record(self, found: Records) -> None:
        if found.history != self._history:
            self._history, self._recorded = found.history, found.start
            self._output.rewind(found.start)
        for report in found.records:
            self._record_step(report)
            self._recorded = report.step

    def _record_step(self, report: StepReport) -> None:
        """Write a step. When the output has no room, stop as for a signal: the state is saved."""
        if self._failed is not None:
            return
        try:
            self._output.record(report)
        except StorageFailed as error:
            self._failed, self._stopping = error, True

    def _save(self, found: StateRef) -> StateRef:
        """Fetch a state from its trainer, save it, and put a copy that outlives the trainer."""
        state: LearnerState = ray.get(found.refs[0])
        self._output.save(state)
        return StateRef(state.step, (ray.put(state),), state.cursor)

    def _check_saving(self) -> None:
        """Replace the safe state by one that was saved; a lost one is given again later."""
        if self._saving is None or not self._saving.done():
            return
        future, self._saving = self._saving, None
        try:
            self._state = future.result()
        except RayError:  # its trainer died meanwhile
            self._unsaved = self._saving_id
        self._control.report.remote(self._report())

    def _finish_saving(self) -> None:
        if self._saving is not None:
            self._saving.result()

    def _report(self) -> DriverReport:
        return DriverReport(
            term=self._term,
            events=tuple(self._events),
            creating=self._fleet.creating,
            killing=self._fleet.killing,
            recorded=self._recorded,
            history=self._history,
            state=self._state,
            saving=-1 if self._saving is None else self._saving_id[0],
            unsaved=self._unsaved,
            begun=self._begun,
            stop=self._stopping,
        )

    def _request_orders(self) -> None:
        self._orders = self._control.orders.remote(self._report())

    def _create_control(self) -> None:
        """Create a Control on the head, with a term above all earlier ones."""
        deadline = time.monotonic() + _NAME_SECONDS
        place = NodeAffinitySchedulingStrategy(_head(), soft=False)
        while True:
            try:
                self._control = Control.options(  # type: ignore[attr-defined]
                    name=CONTROL, scheduling_strategy=place
                ).remote()
                break
            except ValueError:  # Ray has not freed the name yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        start = replace(self._start, state=self._state, begun=self._begun)
        try:
            self._term = ray.get(self._control.start.remote(self._spec, start))
        except RayTaskError as error:
            raise error.cause from error
        self._events = self._fleet.known()
        self._answered = time.monotonic()
        self._request_orders()

    def _replace_control(self, reason: str) -> None:
        """Create another Control. Raises ControlLost if it dies too often."""
        now = time.monotonic()
        self._deaths = [*(at for at in self._deaths if now - at < _HEALTHY_SECONDS), now]
        if len(self._deaths) > _MAX_DEATHS:
            raise ControlLost(
                f"Control was lost {len(self._deaths)} times within {_HEALTHY_SECONDS:.0f} s, the "
                f"last time because {reason}; check the memory of the head node and `ray logs`, "
                "then start the same command again: it continues from its checkpoint"
            )
        ray.kill(self._control)
        self._create_control()

    def _close(self) -> None:
        self._saver.shutdown(wait=True)
        self._fleet.close()
        if self._control is not None:
            ray.kill(self._control)


def _head() -> str:
    """Return the id of the head node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = [node for node in nodes if HEAD_RESOURCE in node["Resources"]]
    return str((heads or nodes)[0]["NodeID"])
