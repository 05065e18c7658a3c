"""Whoever started the run: makes its actors, keeps what they give, and stands by Control.

The driver decides nothing. It owns the actors, so that none outlives the command; it makes Control
anew, with a higher term, when Control dies; and it hands what was trained to a `Keeper`, which
writes it down.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.actor_fleet import Fleet
from cluster.control.control_actor import Control
from cluster.control.control_spec import ControlSpec, ControlStart, mark_folder
from cluster.errors import ControlLost
from cluster.monitoring.process_pages import ProcessPages
from cluster.protocol.actor_rpc import CONTROL, StateRef
from cluster.protocol.driver_protocol import ActorEvent, ControlNews, DriverReport, Told
from cluster.protocol.learner import BuildLearner, LearnerState
from cluster.protocol.messages import StepRecord
from cluster.protocol.step_log import Records
from cluster.readers.reader_actor import Reader
from cluster.trainers.batch_feed import FeedConfig
from cluster.trainers.elastic_training import TrainerConfig
from cluster.trainers.trainer_actor import Trainer
from shards.crops.sample_cropper import CropJob
from shards.stream.journal import JournalEntry

_LOOK_SECONDS = 0.2  # how late a wish to stop may be seen
_SILENCE_SECONDS = 20.0  # without a word of Control, that it is taken for dead
_NAME_SECONDS = 30.0  # that Ray may need to free the name of a dead one
_MAX_DEATHS = 5  # of Control, with less than a healthy minute between them
_HEALTHY_SECONDS = 60.0


class Keeper(Protocol):
    """What the driver gives things to; all of it on the thread of `run`, but for `save`."""

    def begin(self) -> None:
        """The data has filled a batch: from now on the run is worth a folder."""

    def rewind(self, step: int) -> None:
        """Steps after this one will be trained again, and come again."""

    def record(self, record: StepRecord) -> None:
        """A finished step; they come in order, each once."""

    def save(self, state: LearnerState) -> None:
        """A state to keep, on a thread of its own while the training goes on."""

    def look(self, told: Told) -> None:
        """What is known of all actors; about once a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """All that a run on a cluster is before its first batch.

    `job` is what readers must know, `build` makes a learner, `state` is where the training goes on
    and `entries` what its journal knows by then. `trainer_options`: what Ray must know of a
    trainer, such as its cores.
    """

    control: ControlSpec
    job: CropJob
    build: BuildLearner
    trainer: TrainerConfig
    feed: FeedConfig
    state: LearnerState
    entries: tuple[JournalEntry, ...]
    trainer_options: Mapping[str, Any]


def run_cluster(spec: RunSpec, keeper: Keeper, stop: Callable[[], bool]) -> None:
    """Train until the last step, or until `stop()` says so. Needs a connection to Ray.

    Raises what ended the stream, what a learner raised, ConfigError, GaveUp, and ControlLost.
    """
    job, build = ray.put(spec.job), ray.put(spec.build)
    config, ports = spec.control.config, spec.control.debug_ports

    def make_reader(name: str, options: Mapping[str, Any]) -> Any:
        return Reader.options(**options).remote(name, CONTROL, job, config.readers, ports)  # type: ignore[attr-defined]

    def make_trainer(name: str, options: Mapping[str, Any]) -> Any:
        more = {**spec.trainer_options, **options}
        given = (name, CONTROL, build, spec.trainer, spec.feed, ports)
        return Trainer.options(**more).remote(*given)  # type: ignore[attr-defined]

    fleet = Fleet({"reader": make_reader, "trainer": make_trainer}, spec.control.pools)
    # Whoever may ask the driver for /sd is on its machine, and so are its own pages.
    with ProcessPages("driver", ports and replace(ports, on_nodes=False), dict) as pages:
        start = ControlStart(
            state=StateRef(spec.state.step, (ray.put(spec.state),), spec.state.cursor),
            begun=False,
            nonce=mark_folder(spec.control.folder),
            entries=spec.entries,
            pages={"driver": pages.address} if pages.address else {},
        )
        Driver(spec.control, start, fleet, keeper).run(stop)


class Driver:
    """One run, from the first actor to the last. `fleet` makes its actors; `start` is its place.

    `run` returns when every trainer has left: after the last step, or after `stop()` said so.
    Raises what ended the stream, what a learner raised, and ControlLost.
    """

    def __init__(
        self, spec: ControlSpec, start: ControlStart, fleet: Fleet, keeper: Keeper
    ) -> None:
        self._spec = ray.put(spec)  # every new Control needs it
        self._start, self._fleet, self._keeper = start, fleet, keeper
        self._begun = False
        self._recorded, self._history = start.state.step, 0
        self._state = start.state
        self._events: list[ActorEvent] = []
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[StateRef] | None = None
        self._saving_step = self._unsaved_step = -1
        self._deaths: list[float] = []
        self._control: Any = None
        self._term = 0
        self._stopping = False

    def run(self, stop: Callable[[], bool]) -> None:
        """Until the end. `stop()` is asked several times a second."""
        try:
            self._make_control()
            while not self._round(stop):
                pass
            self._finish_saving()
        finally:
            self._close()

    def _round(self, stop: Callable[[], bool]) -> bool:
        """Wait for anything, and deal with it. True when the run is over."""
        refs = [self._news, *self._fleet.refs()]
        done, _ = ray.wait(refs, num_returns=1, timeout=_LOOK_SECONDS)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        events = self._fleet.collect(done)
        self._events += events
        stops = not self._stopping and stop()
        self._stopping |= stops
        self._look_after_saving()
        if self._news in done:
            return self._hear()
        if events or stops:
            self._control.tell.remote(self._report())
        if time.monotonic() - self._heard > _SILENCE_SECONDS:
            self._replace_control("it did not answer")
        return False

    def _hear(self) -> bool:
        """Take what Control says, and ask for more."""
        try:
            news: ControlNews = ray.get(self._news)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._replace_control(type(error).__name__)
            return False
        self._heard = time.monotonic()
        self._events = [event for event in self._events if event.number > news.heard]
        self._take(news)
        if news.error is not None:
            raise news.error
        if news.over and self._saving is None:
            return True
        self._events += self._fleet.kill(news.kill)
        self._fleet.make(news.make)
        if news.state is None and self._saving is None:
            self._fleet.bury(news.heard)
        self._ask()
        return False

    def _take(self, news: ControlNews) -> None:
        if news.ready and not self._begun:
            self._keeper.begin()
            self._begun = True
        self._record(news.records)
        if news.state is not None and self._saving is None and news.state.step > self._state.step:
            self._saving_step = news.state.step
            self._saving = self._saver.submit(self._save, news.state)
        if news.told is not None:
            self._keeper.look(news.told)

    def _record(self, found: Records) -> None:
        if found.history != self._history:
            self._history, self._recorded = found.history, found.start
            self._keeper.rewind(found.start)
        for record in found.records:
            self._keeper.record(record)
            self._recorded = record.step

    def _save(self, found: StateRef) -> StateRef:
        """Fetch a state from the trainer that gave it, keep it, and a copy that outlives it."""
        state: LearnerState = ray.get(found.refs[0])
        self._keeper.save(state)
        return StateRef(state.step, (ray.put(state),), state.cursor)

    def _look_after_saving(self) -> None:
        """Let go of the state before, once the new one is safe; one that was lost comes again."""
        if self._saving is None or not self._saving.done():
            return
        future, self._saving = self._saving, None
        try:
            self._state = future.result()
        except RayError:  # its trainer died meanwhile
            self._unsaved_step = self._saving_step
        self._control.tell.remote(self._report())

    def _finish_saving(self) -> None:
        if self._saving is not None:
            self._saving.result()

    def _report(self) -> DriverReport:
        return DriverReport(
            term=self._term,
            events=tuple(self._events),
            making=self._fleet.making,
            killing=self._fleet.killing,
            recorded=self._recorded,
            history=self._history,
            state=self._state,
            saving=-1 if self._saving is None else self._saving_step,
            unsaved=self._unsaved_step,
            begun=self._begun,
            stop=self._stopping,
        )

    def _ask(self) -> None:
        self._news = self._control.news.remote(self._report())

    def _make_control(self) -> None:
        """A Control on the head, with a term above all before it."""
        deadline = time.monotonic() + _NAME_SECONDS
        place = NodeAffinitySchedulingStrategy(_head(), soft=False)
        while True:
            try:
                self._control = Control.options(  # type: ignore[attr-defined]
                    name=CONTROL, scheduling_strategy=place
                ).remote()
                break
            except ValueError:  # the name is still that of the one before
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
        start = replace(self._start, state=self._state, begun=self._begun)
        try:
            self._term = ray.get(self._control.start.remote(self._spec, start))
        except RayTaskError as error:
            raise error.cause from error
        self._events = self._fleet.known()
        self._heard = time.monotonic()
        self._ask()

    def _replace_control(self, reason: str) -> None:
        """Make another Control, unless it dies again and again."""
        now = time.monotonic()
        self._deaths = [*(at for at in self._deaths if now - at < _HEALTHY_SECONDS), now]
        if len(self._deaths) > _MAX_DEATHS:
            raise ControlLost(
                f"Control was lost {len(self._deaths)} times within {_HEALTHY_SECONDS:.0f} s, the "
                f"last time because {reason}; look at the memory of the head node and at "
                "`ray logs`, then start the same command again: it goes on from its checkpoint"
            )
        ray.kill(self._control)
        self._make_control()

    def _close(self) -> None:
        self._saver.shutdown(wait=True)
        self._fleet.close()
        if self._control is not None:
            ray.kill(self._control)


def _head() -> str:
    """The node on which the tables of the cluster are, and Control."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = [node for node in nodes if "node:__internal_head__" in node["Resources"]]
    return str((heads or nodes)[0]["NodeID"])
