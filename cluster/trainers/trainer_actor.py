"""Trainer: a Ray actor that runs a learner, in one generation after the other.

A trainer has `max_restarts=0`: its owner waits for `left`, learns of its death at once, and
creates another trainer under another name.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import ray

from cluster.monitoring.process_pages import DebugPorts, ProcessPages
from cluster.protocol.actor_rpc import ActorClient, ActorLocation, Unreachable
from cluster.protocol.learner import BuildLearner, LearnerState
from cluster.protocol.messages import Directive, HeartbeatMessage, StateRef, TrainerUsage
from cluster.protocol.process_memory import resident_bytes
from cluster.trainers.batch_feed import BatchFeed, FeedConfig
from cluster.trainers.device_memory import device_bytes
from cluster.trainers.elastic_training import ElasticTrainer, TrainerConfig
from cluster.trainers.heartbeat import Heartbeat
from cluster.trainers.rendezvous import RendezvousStore
from shards.metric import Key, Readings
from shards.stop_signals import ignore_stop_signals

_RETRY_SECONDS: Final = 0.5


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"end": 1})
class Trainer:
    """One rank of every generation that Control puts it in. `name` is also the actor's name."""

    def __init__(
        self,
        name: str,
        control: str,
        build: BuildLearner,
        config: TrainerConfig,
        feed: FeedConfig | None = None,
        ports: DebugPorts | None = None,
    ) -> None:
        ignore_stop_signals()  # the driver answers them
        self._name, self._control, self._build = name, control, build
        self._config, self._feed, self._ports = config, feed, ports
        self._read: Callable[[], Readings] = dict
        self._ready: Future[None] = Future()
        self._end: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def start(self) -> ActorLocation:
        """Build the learner and report it to Control. Raises errors that no retry would mend."""
        pages = ProcessPages(
            self._name, self._ports, lambda: self._read(), ray.util.get_node_ip_address()
        )
        self._thread.start()
        self._ready.result()
        return ActorLocation(os.getpid(), ray.get_runtime_context().get_node_id(), pages.address)

    @ray.method(concurrency_group="end")
    def left(self) -> None:
        """Return when this trainer is done. Raises the error that ended it."""
        self._end.result()

    def _run(self) -> None:
        """Run the training thread."""
        try:
            self._train()
        except BaseException as error:  # raised by `start` or `left`
            for future in (self._ready, self._end):
                if not future.done():
                    future.set_exception(error)
        else:
            self._end.set_result(None)

    def _train(self) -> None:
        client, seconds = ActorClient(self._control), self._config.heartbeat.orphan_seconds
        store = RendezvousStore(ray.util.get_node_ip_address())
        first = HeartbeatMessage(
            member=self._name,
            term=0,
            phase="starting",
            generation=0,
            committed=-1,
            address=store.address,
            node=ray.get_runtime_context().get_node_id(),
        )

        def send(message: HeartbeatMessage) -> Directive:
            directive: Directive = client.call("beat", message)
            return directive

        with (
            _ObjectStoreStates(self._control, self._name, seconds) as states,
            BatchFeed(self._control, self._name, self._feed) as feed,
            Heartbeat(send, first, self._config.heartbeat, lambda: usage_of(feed)) as heartbeat,
        ):
            trainer = ElasticTrainer(self._build, feed, states, heartbeat, store, self._config)
            self._read = lambda: {**trainer.counts, **readings_of(usage_of(feed))}
            trainer.run(on_ready=lambda: self._ready.set_result(None))


def usage_of(feed: BatchFeed) -> TrainerUsage:
    """Return the memory of this process and the batches of its feed."""
    status = feed.status()
    return TrainerUsage(
        memory_bytes=resident_bytes(),
        held_bytes=int(status["held_bytes"]),
        limit_bytes=int(status["limit_bytes"]),
        batches_ready=int(status["batches_ready"]),
        device_bytes=device_bytes(),
    )


def readings_of(usage: TrainerUsage) -> Readings:
    """Return gauges of a trainer, by key."""
    found: dict[Key, float] = {
        ("buffer_bytes", "trainer"): usage.held_bytes,
        ("buffer_limit_bytes", "trainer"): usage.limit_bytes,
        ("batches_ready", "taken"): usage.batches_ready,
    }
    return found | {
        ("device_memory_bytes", what): count for what, count in usage.device_bytes.items()
    }


class _ObjectStoreStates:
    """A `StateStore` that sends states to the driver through the object store of Ray.

    The two newest stay in this process until it ends, or until the driver has copies.
    """

    def __init__(self, control: str, member: str, timeout_seconds: float) -> None:
        self._client, self._member = ActorClient(control), member
        self._timeout_seconds = timeout_seconds
        self._worker = ThreadPoolExecutor(1, "states")
        self._pending: Future[None] | None = None
        self._refs: list[Any] = []

    def first(self) -> LearnerState | None:
        found: StateRef = self._call("state")
        if not found.refs:
            return None
        state: LearnerState = ray.get(found.refs[0])
        return state

    def keep(self, state: LearnerState) -> None:
        self.flush()  # a state may be large: never more than one under way
        self._pending = self._worker.submit(self._put, state)

    def flush(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _put(self, state: LearnerState) -> None:
        ref = ray.put(state)
        self._refs = [*self._refs[-1:], ref]
        self._call("saved", self._member, state.step, [ref])

    def _call(self, method: str, *arguments: object) -> Any:
        """Call Control, or its successor if it dies meanwhile."""
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                return self._client.call(method, *arguments)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def __enter__(self) -> "_ObjectStoreStates":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(wait=False)
