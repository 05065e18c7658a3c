"""Trainers on threads: real gloo groups, real heartbeats, and the real `Membership`."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.errors import StateDiffers
from cluster.membership.failure_detector import MembershipConfig
from cluster.membership.membership import Membership
from cluster.protocol.actor_rpc import Unreachable
from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.messages import Directive, HeartbeatMessage
from cluster.protocol.step_report import StepReport
from cluster.trainers.elastic_training import ElasticTrainer, TrainerConfig
from cluster.trainers.heartbeat import Heartbeat, HeartbeatConfig
from cluster.trainers.rendezvous import RendezvousStore
from shards.errors import StreamStopped
from shards.records import CropBatch
from tests.cluster.toy_learner import (
    BATCH,
    ToyLearner,
    made_batch,
    made_report,
    part,
    trained_alone,
)

LIMITS = MembershipConfig(gather_seconds=20.0, settle_seconds=0.3, silence_seconds=20.0)
HEARTBEAT = HeartbeatConfig(beat_seconds=0.1, orphan_seconds=20.0)


class MembershipServer:
    """`Membership` with a clock and a lock, in place of Control."""

    def __init__(self, num_trainers: int, config: MembershipConfig = LIMITS) -> None:
        self.table = Membership(1, BATCH, num_trainers, config)
        self.lock = threading.Lock()
        self.is_away = False
        self.records: list[StepReport] = []
        self._history = 0

    def beat(self, message: HeartbeatMessage) -> Directive:
        with self.lock:
            if self.is_away:
                raise Unreachable("Control is away")
            answer = self.table.beat(message, time.monotonic())
            since = self.records[-1].step if self.records else 0
            found = self.table.records(since, self._history)
            self._history = found.history
            self.records += found.records
            return answer

    def tell(self, method: str, *arguments: Any) -> None:
        with self.lock:
            getattr(self.table, method)(*arguments, time.monotonic())


class LimitedBatches:
    """Rows of made batches. The steps from `limit` on are withheld while it is set."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._changed = threading.Condition()
        self._interrupted = False
        self._place = (0, 1)
        self._step = 0

    def enter(self, rank: int, world: int, step: int) -> None:
        with self._changed:
            self._place, self._step, self._interrupted = (rank, world), step, False

    def next(self) -> CropBatch:
        with self._changed:
            while self._interrupted or (self.limit is not None and self._step >= self.limit):
                if self._interrupted:
                    raise StreamStopped("interrupted")
                self._changed.wait(0.02)
            self._step += 1
            return part(made_batch(self._step - 1), *self._place)

    def peek(self) -> CropBatch | None:
        """Return None: this feed has no batch before it is asked for one."""
        return None

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self) -> None:
        self.interrupt()


class MemoryStates:
    """A `StateStore` in memory."""

    def __init__(self) -> None:
        self.kept: list[LearnerState] = []

    def first(self) -> LearnerState | None:
        return self.kept[-1] if self.kept else None

    def keep(self, state: LearnerState) -> None:
        self.kept.append(state)

    def flush(self) -> None:
        """Return at once: `keep` has saved it."""


class TrainerThread:
    """One trainer; a cleared `wait_in_step` makes its training thread hang in the next step."""

    def __init__(
        self, name: str, server: MembershipServer, states: MemoryStates, num_steps: int
    ) -> None:
        self.name, self.server, self.batches = name, server, LimitedBatches()
        self.end: Future[None] = Future()
        self.dead = False
        self.wait_in_step = threading.Event()
        self.wait_in_step.set()
        self.learners: list[ToyLearner] = []
        store = RendezvousStore("127.0.0.1")
        first = HeartbeatMessage(
            member=name,
            term=0,
            phase="starting",
            generation=0,
            committed=-1,
            address=store.address,
        )
        self.heartbeat = Heartbeat(self._send, first, HEARTBEAT)
        config = TrainerConfig(
            num_steps=num_steps,
            save_every=10,
            sync_check_every=7,
            backend="gloo",
            heartbeat=HEARTBEAT,
        )
        self.training = ElasticTrainer(
            self._build, self.batches, states, self.heartbeat, store, config
        )
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def learner(self) -> ToyLearner:
        return self.learners[-1]

    def _build(self) -> ToyLearner:
        learner = ToyLearner()
        step = learner.train_step

        def held(batch: CropBatch, vote: StopVote) -> Any:
            self.wait_in_step.wait(50)
            return step(batch, vote)

        learner.train_step = held  # type: ignore[method-assign]
        self.learners.append(learner)
        return learner

    def _send(self, message: HeartbeatMessage) -> Directive:
        if self.dead:
            raise Unreachable("the trainer is dead")
        return self.server.beat(message)

    def _run(self) -> None:
        try:
            with self.heartbeat:
                self.training.run()
        except BaseException as error:
            self.end.set_exception(error)
        else:
            self.end.set_result(None)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail with `what`."""
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def reached(trainers: list[TrainerThread], step: int) -> Callable[[], bool]:
    return lambda: all(trainer.learners and trainer.learner.step >= step for trainer in trainers)


def check_end(server: MembershipServer, trainers: list[TrainerThread], num_steps: int) -> None:
    """Compare the states with an undisturbed learner; every step is reported once, in order."""
    for trainer in trainers:
        trainer.end.result(timeout=40)
    expected = trained_alone(num_steps)
    for trainer in trainers:
        torch.testing.assert_close(trainer.learner.weights, expected.weights, rtol=1e-12, atol=0)
    assert len({trainer.learner.digest() for trainer in trainers}) == 1
    assert [record.step for record in server.records] == list(range(1, num_steps + 1))
    digests = [record.digest for record in server.records]
    assert digests == [made_batch(step).digest for step in range(num_steps)]


def start(
    num: int, num_steps: int, limit: int | None = None
) -> tuple[MembershipServer, MemoryStates, list[TrainerThread]]:
    server, states = MembershipServer(num), MemoryStates()
    trainers = [TrainerThread(f"t{place}", server, states, num_steps) for place in range(num)]
    for trainer in trainers:
        trainer.batches.limit = limit
    return server, states, trainers


@pytest.mark.parametrize("num_trainers", [1, 3])
def test_trainers_train_to_the_end_and_leave(num_trainers: int) -> None:
    """The last state must be saved before a trainer leaves, and by rank 0 alone."""
    server, states, trainers = start(num_trainers, 25)
    check_end(server, trainers, 25)
    assert [state.step for state in states.kept] == [10, 20, 25]
    assert server.table.is_finished


def test_lost_trainer_costs_at_most_one_step() -> None:
    """Survivors must continue with a fitting world size, without a repeated or missing step."""
    server, _, trainers = start(3, 60, limit=20)
    until(reached(trainers, 20), "all train")
    lost = trainers[1]
    lost.dead = True
    began = time.monotonic()
    server.tell("lost", lost.name, "killed")
    survivors = [trainers[0], trainers[2]]
    for trainer in survivors:
        trainer.batches.limit = None
    until(reached(survivors, 21), "they go on")
    assert time.monotonic() - began < 10
    check_end(server, survivors, 60)
    assert server.table.num_generations == 2


def test_hanging_trainer_is_left_behind() -> None:
    """Its peers wait in a sum that it never joins; they must be interrupted and undo the step."""
    server, _, trainers = start(3, 60, limit=15)
    until(reached(trainers, 15), "all train")
    hanging = trainers[2]
    hanging.wait_in_step.clear()
    for trainer in trainers:
        trainer.batches.limit = None
    others = trainers[:2]
    until(lambda: all(trainer.heartbeat.doing == "peers" for trainer in others), "they wait for it")
    server.tell("lost", hanging.name, "it hangs")
    check_end(server, others, 60)
    assert hanging.learner.step == 15
    hanging.wait_in_step.set()  # the zombie finds that its generation is over, and leaves
    hanging.end.result(timeout=40)


def test_newcomer_joins_after_a_step_and_receives_the_state() -> None:
    """Members leave after the same step, so no step is lost."""
    server, states = MembershipServer(2, replace(LIMITS, gather_seconds=0.2)), MemoryStates()
    first = TrainerThread("t0", server, states, 80)
    first.batches.limit = 30
    until(reached([first], 20), "it trains alone")
    second = TrainerThread("t1", server, states, 80)
    until(lambda: first.heartbeat.vote is StopVote.REGROUP, "the newcomer is noticed")
    first.batches.limit = None
    check_end(server, [first, second], 80)
    assert not [event for event in server.table.events if "is over" in event.what]


def test_draining_trainer_leaves_without_a_break() -> None:
    """The others must continue with the next step."""
    server, _, trainers = start(2, 60, limit=20)
    until(reached(trainers, 20), "all train")
    server.tell("draining", "t0")
    until(lambda: trainers[1].heartbeat.vote is StopVote.REGROUP, "the vote arrives")
    for trainer in trainers:
        trainer.batches.limit = None
    trainers[0].end.result(timeout=40)
    check_end(server, trainers[1:], 60)
    assert not [event for event in server.table.events if "is over" in event.what]


def test_stop_ends_all_after_the_same_step_and_saves_the_state() -> None:
    """The finished steps must not be lost."""
    server, states, trainers = start(2, 1000, limit=23)
    until(reached(trainers, 23), "all train")
    server.tell("stop")
    until(lambda: trainers[1].heartbeat.vote is StopVote.STOP, "the vote arrives")
    for trainer in trainers:
        trainer.batches.limit = None
    for trainer in trainers:
        trainer.end.result(timeout=40)
    steps = {trainer.learner.step for trainer in trainers}
    assert len(steps) == 1 and states.kept[-1].step == steps.pop() < 1000


def test_training_continues_without_control_and_under_its_successor() -> None:
    """Reports must be kept; the next Control gathers all trainers at their newest step."""
    server, _, trainers = start(2, 120, limit=20)
    until(reached(trainers, 20), "all train")
    server.is_away = True
    for trainer in trainers:
        trainer.batches.limit = 50
    until(reached(trainers, 50), "steps need no Control")
    with server.lock:
        server.table, server._history = Membership(2, BATCH, 2, LIMITS), 0
        server.is_away = False
    until(lambda: server.table.is_running, "the next Control has a generation")
    for trainer in trainers:
        trainer.batches.limit = None
    check_end(server, trainers, 120)


def test_trainer_without_control_gives_up() -> None:
    """An orphan would keep a GPU for ever."""
    server, _, trainers = start(1, 1000, limit=5)
    until(reached(trainers, 5), "it trains")
    trainers[0].heartbeat._config = replace(HEARTBEAT, orphan_seconds=0.5)
    server.is_away = True
    with pytest.raises(Unreachable, match="nobody answered this trainer"):
        trainers[0].end.result(timeout=40)


def test_states_that_drift_apart_end_the_run() -> None:
    """Every rank must end at the next comparison, with the step in the message."""
    _, _, trainers = start(2, 100, limit=14)
    until(reached(trainers, 14), "all train")
    trainers[1].learner.weights += 1e-9
    for trainer in trainers:
        trainer.batches.limit = None
    for trainer in trainers:
        with pytest.raises(StateDiffers, match="after step 21 the 2 trainers do not hold the same"):
            trainer.end.result(timeout=40)


def test_run_begins_with_the_saved_state() -> None:
    """Rank 0 loads it, and the others must receive it."""
    server, states = MembershipServer(2), MemoryStates()
    states.kept.append(trained_alone(40).state())
    server.table.restore(40, trained_alone(40).cursor)
    trainers = [TrainerThread(f"t{place}", server, states, 60) for place in range(2)]
    server.records.append(made_report(40))
    for trainer in trainers:
        trainer.end.result(timeout=40)
    assert {trainer.learner.digest() for trainer in trainers} == {trainers[0].learner.digest()}
    expected = trained_alone(60)
    torch.testing.assert_close(trainers[1].learner.weights, expected.weights, rtol=1e-12, atol=0)
    assert [record.step for record in server.records] == list(range(40, 61))
