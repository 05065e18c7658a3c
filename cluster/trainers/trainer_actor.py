"""Trainers as Ray actors: each runs a learner, in one generation after the other.

A trainer is made with `max_restarts=0`: whoever made it waits for `left`, hears of its death at
once, and makes another one under another name.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import ray

from cluster.monitoring.process_pages import DebugPorts, ProcessPages
from cluster.protocol.actor_rpc import Link, Started, StateRef, Unreachable
from cluster.protocol.learner import BuildLearner, LearnerState
from cluster.protocol.messages import Beat, Directive, Load
from cluster.protocol.metric import Key, Readings
from cluster.protocol.process_memory import device_bytes, resident_bytes
from cluster.trainers.batch_feed import Feed, FeedConfig
from cluster.trainers.elastic_training import TrainerConfig, Training
from cluster.trainers.heartbeat import Pulse
from cluster.trainers.rendezvous import Door

_RETRY_SECONDS: Final = 0.5


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"end": 1})
class Trainer:
    """One rank of whatever generation Control puts it in. `name` is also the actor's name."""

    def __init__(
        self,
        name: str,
        control: str,
        build: BuildLearner,
        config: TrainerConfig,
        feed: FeedConfig | None = None,
        ports: DebugPorts | None = None,
    ) -> None:
        self._name, self._control, self._build = name, control, build
        self._config, self._feed, self._ports = config, feed, ports
        self._read: Callable[[], Readings] = dict
        self._ready: Future[None] = Future()
        self._end: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def start(self) -> Started:
        """Build the learner, and tell Control of it. Raises what no retry would mend."""
        pages = ProcessPages(self._name, self._ports, lambda: self._read())
        self._thread.start()
        self._ready.result()
        return Started(os.getpid(), ray.get_runtime_context().get_node_id(), pages.address)

    @ray.method(concurrency_group="end")
    def left(self) -> None:
        """Returns when this trainer is done; raises what it could not go on after."""
        self._end.result()

    def _run(self) -> None:
        """The training thread."""
        try:
            self._train()
        except BaseException as error:  # whoever waits gets it
            for future in (self._ready, self._end):
                if not future.done():
                    future.set_exception(error)
        else:
            self._end.set_result(None)

    def _train(self) -> None:
        link, seconds = Link(self._control), self._config.pulse.orphan_seconds
        door = Door(ray.util.get_node_ip_address())
        first = Beat(
            member=self._name,
            term=0,
            phase="starting",
            generation=0,
            committed=-1,
            address=door.address,
            node=ray.get_runtime_context().get_node_id(),
        )

        def speak(beat: Beat) -> Directive:
            answer: Directive = link.call("beat", beat)
            return answer

        with (
            _ObjectStore(self._control, self._name, seconds) as keeper,
            Feed(self._control, self._name, self._feed) as feed,
            Pulse(speak, first, self._config.pulse, lambda: load_of(feed)) as pulse,
        ):
            training = Training(self._build, feed, keeper, pulse, door, self._config)
            self._read = lambda: {**training.counts, **readings_of(load_of(feed))}
            training.run(on_ready=lambda: self._ready.set_result(None))


def load_of(feed: Feed) -> Load:
    """What this process holds at this moment."""
    status = feed.status()
    return Load(
        memory_bytes=resident_bytes(),
        held_bytes=int(status["held_bytes"]),
        limit_bytes=int(status["limit_bytes"]),
        batches_ready=int(status["batches_ready"]),
        device_bytes=device_bytes(),
    )


def readings_of(load: Load) -> Readings:
    """What a trainer holds, by key."""
    found: dict[Key, float] = {
        ("buffer_bytes", "trainer"): load.held_bytes,
        ("buffer_limit_bytes", "trainer"): load.limit_bytes,
        ("batches_ready", "taken"): load.batches_ready,
    }
    return found | {
        ("device_memory_bytes", what): count for what, count in load.device_bytes.items()
    }


class _ObjectStore:
    """States on their way to the driver, by way of the object store: a `Keeper`.

    The two newest stay in this process until it ends, or the driver has copies of its own.
    """

    def __init__(self, control: str, member: str, patience_seconds: float) -> None:
        self._link, self._member, self._patience = Link(control), member, patience_seconds
        self._worker = ThreadPoolExecutor(1, "keeper")
        self._pending: Future[None] | None = None
        self._refs: list[Any] = []

    def first(self) -> LearnerState | None:
        found: StateRef = self._insist("state")
        if not found.refs:
            return None
        state: LearnerState = ray.get(found.refs[0])
        return state

    def keep(self, state: LearnerState) -> None:
        self.flush()  # never more than one under way: a state may be large
        self._pending = self._worker.submit(self._put, state)

    def flush(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _put(self, state: LearnerState) -> None:
        ref = ray.put(state)
        self._refs = [*self._refs[-1:], ref]
        self._insist("saved", self._member, state.step, [ref])

    def _insist(self, method: str, *arguments: object) -> Any:
        """Call Control, and its successor if it dies meanwhile."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self._link.call(method, *arguments)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def __enter__(self) -> "_ObjectStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(wait=False)
